"""Caltech-256 from scratch with ConvNeXt-atto at 128 px, on 60 images a class.

The settings of ``imagenette``. With so few images of a class, released weights are far better, as ``caltech101`` says.

Command: ``convnext train caltech256 --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes import imagenette

SETTINGS = imagenette.SETTINGS.replace(data={"name": "caltech256", "val_fraction": 0.05})
