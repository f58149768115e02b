"""What a study has to say: one model of it, figures, and renderings as HTML, Markdown and text."""
