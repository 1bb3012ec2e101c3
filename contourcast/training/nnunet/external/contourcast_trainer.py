"""For nnU-Net's own command line: ``nnUNet_extTrainer`` is set to the folder that holds this file.

nnU-Net imports every module of such a folder, so there is only this one. Then
``nnUNetv2_train DATASET 3d_fullres FOLD -p nnUNetPlans_diff-umamba -tr ContourcastTrainer`` works.
"""

from contourcast.training.nnunet.trainer import ContourcastTrainer

__all__ = ["ContourcastTrainer"]
