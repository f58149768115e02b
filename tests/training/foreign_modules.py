"""Modules as their own authors would write them: nothing in them knows of stacks."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score


class ImageData(pl.LightningDataModule):
    """Small images of three classes, split at random by the global seed."""

    def __init__(self, batch_size: int = 16):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(160) % 3
        x = torch.randn(160, 1, 8, 8, generator=generator) + y.view(-1, 1, 1, 1).float()
        self.train, self.val = random_split(TensorDataset(x, y), [120, 40])

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 30)


class CNN(pl.LightningModule):
    def __init__(self, lr: float = 0.05, momentum: float = 0.9, p: float = 0.0, bn_momentum: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4, momentum=bn_momentum),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(p),
            nn.Linear(32, 3),
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = functional.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", functional.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.hparams.lr, momentum=self.hparams.momentum, nesterov=True, weight_decay=1e-3
        )
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TableData(pl.LightningDataModule):
    def __init__(self, batch_size: int = 32):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(200, 5, generator=generator)
        y = x[:, :1] * 2 - x[:, 1:2] ** 2 + 0.1 * torch.randn(200, 1, generator=generator)
        self.train, self.val = TensorDataset(x[:150], y[:150]), TensorDataset(x[150:], y[150:])

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.val, 20)


class Regressor(pl.LightningModule):
    """torchmetrics, updated in training and in validation."""

    def __init__(self, lr: float = 0.01, weight_decay: float = 0.0, width: int = 16):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 1))
        self.train_mae = MeanAbsoluteError()
        self.val_metrics = MetricCollection({"mae": MeanAbsoluteError(), "r2": R2Score()}, prefix="val_")

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        prediction = self(x)
        loss = functional.mse_loss(prediction, y)
        self.train_mae(prediction, y)
        self.log("train_mae", self.train_mae, on_step=False, on_epoch=True)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        prediction = self(x)
        self.val_metrics.update(prediction, y)
        self.log("val_loss", functional.mse_loss(prediction, y))
        self.log_dict(self.val_metrics)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class SequenceData(pl.LightningDataModule):
    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(2)
        tokens = torch.randint(0, 11, (96, 6), generator=generator)
        target = (tokens == 3).any(1).long()
        self.train, self.val = TensorDataset(tokens[:64], target[:64]), TensorDataset(tokens[64:], target[64:])

    def train_dataloader(self):
        return DataLoader(self.train, 16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 32)


class Transformer(pl.LightningModule):
    def __init__(self, lr: float = 1e-3, dropout: float = 0.0):
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(11, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)).mean(1))

    def training_step(self, batch, batch_idx):
        tokens, y = batch
        return functional.cross_entropy(self(tokens), y)

    def validation_step(self, batch, batch_idx):
        tokens, y = batch
        self.log("val_loss", functional.cross_entropy(self(tokens), y))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)]


class TwoHeads(pl.LightningModule):
    """A loss dictionary, two heads, two parameter groups, a balance between the losses as a hyperparameter."""

    def __init__(self, lr: float = 0.01, head_lr: float = 0.05, balance: float = 0.5):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(5, 12), nn.ReLU())
        self.value, self.sign = nn.Linear(12, 1), nn.Linear(12, 2)
        self.register_buffer("weight", torch.tensor([balance, 1 - balance]))

    def losses(self, batch):
        x, y = batch
        hidden = self.body(x)
        value = functional.mse_loss(self.value(hidden), y)
        sign = functional.cross_entropy(self.sign(hidden), (y[:, 0] > 0).long())
        return {"loss": self.weight[0] * value + self.weight[1] * sign, "value": value, "sign": sign}

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        self.log_dict({f"train_{name}": loss for name, loss in losses.items()})
        return losses

    def validation_step(self, batch, batch_idx):
        self.log_dict({f"val_{name}": loss for name, loss in self.losses(batch).items()})

    def configure_optimizers(self):
        heads = [*self.value.parameters(), *self.sign.parameters()]
        return torch.optim.Adam(
            [{"params": self.body.parameters()}, {"params": heads, "lr": self.hparams.head_lr, "weight_decay": 1e-3}],
            lr=self.hparams.lr,
            amsgrad=True,
        )


class Plain(pl.LightningModule):
    """A linear model with a hidden layer and whatever optimizer it is given."""

    def __init__(self, configure=None, smoothing=0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
        self.configure, self.smoothing = configure, smoothing

    def training_step(self, batch, batch_idx):
        return functional.huber_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.configure(self.parameters())


def sgd(rate, **arguments):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, **arguments)


class Rows(Dataset):
    """Map-style, read row by row, with noise of its own."""

    def __init__(self, noise):
        self.x = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))
        self.noise = noise

    def __len__(self):
        return 70

    def __getitem__(self, row):
        return self.x[row] + self.noise * torch.rand(5), self.x[row, :1]


class Loaders(pl.LightningDataModule):
    def __init__(self, train, val=None):
        super().__init__()
        self.train_dataloader = train
        self.val_dataloader = val or (lambda: DataLoader(train().dataset, 30))
