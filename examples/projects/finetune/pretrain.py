"""Weights to start from: a backbone that tells the digits 0 to 4 apart.

Run: python pretrain.py
"""

import torch
from finetune import Digits, backbone
from torch import nn


def main(file="backbone.pt", epochs=8):
    torch.manual_seed(0)
    data = Digits(digits=range(5))
    data.setup("fit")
    layers = backbone()
    model = nn.Sequential(layers, nn.Linear(32, 5))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for x, y in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    torch.save(layers.state_dict(), file)


if __name__ == "__main__":
    main()
