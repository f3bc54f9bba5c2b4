"""The numbers of the paper, by our names of experiments and methods. The order of columns is as in its tables."""

TABLE_1_COLUMNS = ("dataset", "frames", "ego", "background_variation", "markerless", "real", "large_fov", "hand_hand")
TABLE_1 = (
    ("FreiHAND [2019]", 37_000, False, True, True, True, False, False),
    ("HOnnotate [2020]", 78_000, False, False, True, True, False, False),
    ("InterHand2.6M [2020]", 2_590_000, False, False, True, True, False, True),
    ("GANerated Hands [2018]", 331_000, False, True, True, False, False, False),
    ("H2O [2021]", 571_000, True, False, True, True, False, False),
    ("FPHA [2018]", 105_000, True, True, False, True, False, False),
    ("UmeTrack (real)", 839_000, True, False, False, True, True, True),
    ("UmeTrack (synth)", 839_000, True, True, True, False, True, True),
)
"""Source: Table 1."""

TABLE_2 = {
    "no_ftl": ("L_pose", 49.8, 6.29),
    "no_skeleton_encoder": ("L_pose", 13.4, 4.07),
    "no_temporal": ("L_pose", 9.5, 5.10),
    "no_temporal_temporal_loss": ("L_pose + L_temp", 10.2, 4.39),
    "full": ("L_pose", 9.3, 3.52),
    "full_one_euro": ("L_pose", 10.1, 2.67),
    "full_temporal_loss": ("L_pose + L_temp", 9.4, 2.61),
}
"""Losses, MPJPE, MPJPA. Source: Table 2; the text of §5.2 says 10.0 instead of 10.2."""

TABLE_3 = {
    "multistage": ((9.9, 3.48), (10.8, 3.33), (12.9, 3.46), (13.6, 3.33)),
    "full_temporal_loss": ((9.4, 2.61), (10.5, 2.73), (11.2, 2.57), (12.0, 2.69)),
    "full_temporal_pinch_loss": ((9.4, 2.65), (10.6, 2.68), (11.4, 2.60), (12.2, 2.65)),
}
"""MPJPE and MPJPA of known, then unknown skeletons, each of separate hands, then two hands. Source: Table 3; the text
of §5.3 says 2.68 instead of 2.73."""

CORRECTED_TABLE_3 = {
    "multistage": ((9.9, 4.63), (10.8, 4.09), (12.9, 4.67), (13.6, 4.17)),
    "full_temporal_loss": ((None, None),) * 4,
    "full_temporal_pinch_loss": ((9.4, 3.92), (10.6, 3.47), (10.0, 3.86), (10.9, 3.44)),
}
"""As corrected on the page of the paper's authors, whose one model has the MPJPE of the paper's row with L_pinch."""

TABLE_4 = {
    "multistage": (96.5, 95.0),
    "full_temporal_loss": (92.2, 90.8),
    "full_temporal_pinch_loss": (97.3, 97.3),
}
"""Precision and recall, percent. Source: Table 4."""

for _table in (TABLE_3, CORRECTED_TABLE_3, TABLE_4):
    _table["official"] = _table["full_temporal_pinch_loss"]  # the published weights are taken for those of this row
