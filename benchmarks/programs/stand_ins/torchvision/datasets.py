import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

TRAINED = 1500


class MNIST(Dataset):
    def __init__(self, root=None, train=True, transform=None, download=False):
        found = load_digits()
        order = np.random.RandomState(0).permutation(len(found.target))
        order = torch.from_numpy(order[:TRAINED] if train else order[TRAINED:])
        small = torch.tensor(found.images / 16.0, dtype=torch.float32)[order]
        large = torch.nn.functional.interpolate(small[:, None], size=(28, 28), mode="bilinear")[:, 0]
        self.data = self.train_data = self.test_data = (large * 255).to(torch.uint8)
        self.targets = self.train_labels = self.test_labels = torch.tensor(found.target)[order]
        self.transform = transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x = self.data[i].float()[None] / 255
        return (x if self.transform is None else self.transform(x)), int(self.targets[i])


FashionMNIST = MNIST
