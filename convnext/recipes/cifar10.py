"""CIFAR-10 from scratch in an hour and a half on two CPU cores.

Three stages behind a stem of patch size 2 whose convolutions overlap, as those between the stages do. The paper's
initial weights and layer scale are made for 300 epochs; with PyTorch's default and layer scale 1 a short run learns far
faster, and with Muon faster again. Seven tenths of the epochs are at 24 px. What each of these gains is in
``docs/research/cifar10.md``.

Reaches 90.17 % test top-1 with 2.18 M parameters in 91 minutes on two cores with AMX (``results/cifar10/convnext``).

Command: ``convnext train cifar10 --data.root DIR``, where DIR gets torchvision's download; or for images in folders
``convnext train cifar10 --data.name folder --data.root DIR``. The number is of ``--precision bf16``.
"""

from convnext.recipes import Measured
from convnext.recipes.common import small as _small

SETTINGS = _small.SETTINGS.replace(
    epochs=80,
    eval_every=2,
    model={"depths": (1, 5, 2), "overlap": True},
    data={"name": "cifar10", "start_size": 24},
    augment={"cutmix": 1.0, "mix_probability": 0.5},
    optimizer={"name": "muon", "lr": 4e-3, "momentum": 0.95},
)
BY_MODEL = _small.BY_MODEL
MEASURED = (Measured("90.17 % top-1, 0.902 macro-F1, test", "results/cifar10/convnext"),)
