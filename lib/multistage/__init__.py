"""The multi-stage baseline: detection, keypoints and a kinematic fit, as in MEgATrack (Han et al. 2020)."""
