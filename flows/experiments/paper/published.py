"""Numbers that the paper prints (I²AM, ICLR 2025), to stand beside those computed here."""

from __future__ import annotations

SUPERVISED = "YOLOS, trained on scenes"
"""What stands for the paper's supervised detectors on the embedded model's scenes."""

DETECTION: dict[str, tuple[float | None, float | None]] = {
    "Faster-RCNN": (0.3225, 0.2658),
    "Mask-RCNN": (0.3294, 0.2706),
    "YOLOv3": (0.2448, 0.1978),
    "MaskFormer": (0.3568, 0.2932),
    "RTMDet": (0.3228, 0.2516),
    "DAAM": (0.1807, 0.1807),
    "Overall": (0.1807, 0.2028),
    "Random 10-30%": (0.2028, 0.2028),
    "I²AM": (None, 0.2416),
}
"""Method to mIoU against the true box and the generated one, Paint-by-Example on COCO val2017."""

REFINEMENT: dict[str, tuple[float, float, float, float]] = {
    "DCI-VTON": (13.0953, 0.0334, 0.0824, 0.8612),
    "StableVITON": (10.6755, 0.0064, 0.0817, 0.8634),
    "Custom": (11.6572, 0.0042, 0.1020, 0.8396),
    "Refined custom": (11.5420, 0.0022, 0.0964, 0.8644),
}
"""Method to FID, KID, LPIPS and SSIM, virtual try-on."""
