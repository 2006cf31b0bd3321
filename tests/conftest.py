"""Nets of the tests are tiny: a second thread costs more than it gives."""

import cv2
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)
