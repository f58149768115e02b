"""Panda: babysit one model. A policy decides from a history; the callback `PandaBabysitter` wires it into Lightning."""
