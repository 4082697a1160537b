"""NS-Net (arXiv 2508.01248): telling AI-generated images from photographs.

Image -> patch selection -> CLIP image tower -> null-space projection -> head -> calibrated verdict.
Nothing here knows of HTTP.
"""
