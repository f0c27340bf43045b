"""One training step of Mask R-CNN on a ConvNeXt, with random images, boxes and masks.

``python examples/detection.py`` prints the losses. For real training, start from released weights
(``create_model("convnext_tiny", weights="in1k")``) and feed your boxes.
"""

import torch
from torchvision.models.detection import MaskRCNN

from convnext import create_model
from convnext.models.backbone import FPNBackbone
from convnext.models.variants import ConvNeXtName


def random_target(boxes: int, classes: int, size: int) -> dict[str, torch.Tensor]:
    """Boxes ``(boxes, 4)`` as x0, y0, x1, y1 in pixels, labels from 1 (0 is background), and filled masks."""
    corners = torch.rand(boxes, 2) * size / 2
    found = torch.cat([corners, corners + size / 8 + torch.rand(boxes, 2) * size / 4], dim=1)
    masks = torch.zeros(boxes, size, size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, found.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return {"boxes": found, "labels": torch.randint(1, classes, (boxes,)), "masks": masks}


def main(name: ConvNeXtName = "convnext_atto", size: int = 128) -> dict[str, float]:
    """Build the detector, take one step, and return its losses."""
    torch.manual_seed(0)
    backbone = FPNBackbone(create_model(name, num_classes=0))
    detector = MaskRCNN(backbone, num_classes=5, min_size=size, max_size=size)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-4, weight_decay=0.05)
    images = [torch.rand(3, size, size) for _ in range(2)]
    losses = detector(images, [random_target(3, 5, size) for _ in images])
    sum(losses.values()).backward()
    optimizer.step()
    return {key: loss.item() for key, loss in losses.items()}


if __name__ == "__main__":
    for key, value in main().items():
        print(f"{key} {value:.4f}")
