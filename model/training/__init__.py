"""Training: manifest -> augmented copies -> features of the frozen tower -> head -> calibration."""
