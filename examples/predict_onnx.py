"""Run an exported network on a picture with ONNX Runtime, NumPy and Pillow alone: what a small board needs.

python predict_onnx.py NETWORK.onnx PICTURE
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

if len(sys.argv) != 3:
    sys.exit("usage: predict_onnx.py NETWORK.onnx PICTURE (light on dark ground, as the training data)")
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["ticketlab"])
channels, height, width = facts["input_shape"]
picture = (
    Image.open(sys.argv[2]).convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
)
pixels = np.asarray(picture, np.float32).reshape(height, width, channels) / 255
pixels = (pixels - np.float32(facts["mean"])) / np.float32(facts["std"])
(logits,) = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})[0]
shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
print(facts["labels"][shares.argmax()], f"{100 * shares.max():.1f} %")
