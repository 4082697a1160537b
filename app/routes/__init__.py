"""HTTP routes: `detect` for images, `system` for operators."""
