"""Caltech-101 from scratch with ConvNeXt-atto at 128 px, on 30 images a class.

The settings of ``imagenette``, with twice the epochs for a third of the images. With so few, released weights are far
better: ``--model.name convnext_tiny --model.weights in22k --data.image-size 224 --data.start-size None --epochs 20
--optimizer.lr 2e-4``.

Command: ``convnext train caltech101 --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes import imagenette

SETTINGS = imagenette.SETTINGS.replace(epochs=200, data={"name": "caltech101", "val_fraction": 0.1})
