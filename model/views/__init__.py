"""Views: what of a picture is looked at."""
