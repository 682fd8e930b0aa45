"""Images per second of PyTorch's `ImageFolder` in two epochs; `input.py` calls it with folder, size and batch size."""

import json
import os
import sys
import time

import torch
import torchvision


def main():
  folder, size, batch_size = sys.argv[1], *map(int, sys.argv[2:])
  transforms = torchvision.transforms
  images = torchvision.datasets.ImageFolder(folder, transforms.Compose([
      transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]))
  loader = torch.utils.data.DataLoader(images, batch_size, shuffle=True, num_workers=len(os.sched_getaffinity(0)),
                                       persistent_workers=True)
  print(json.dumps([_rate(loader), _rate(loader)]))


def _rate(loader):
  start = time.perf_counter()
  count = sum(len(batch) for batch, _ in loader)
  return count / (time.perf_counter() - start)


if __name__ == "__main__":
  main()
