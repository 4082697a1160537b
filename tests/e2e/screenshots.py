"""`python -m tests.e2e.screenshots URL FOLDER`: pictures of the page of a running server.

The images are freely licensed ones of scikit-image. `docs/page.jpg` is `wide-light-why.jpg`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image
from playwright.sync_api import Page, sync_playwright

SCREENS = {"wide": (1200, 900), "narrow": (360, 780)}


def images(folder: Path) -> list[Path]:
    """The images, as files."""
    paths = []
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        paths.append(folder / f"{name}.jpg")
        Image.fromarray(getattr(skimage.data, name)()).save(paths[-1], quality=92)
    paths.append(folder / "notes.txt")
    paths[-1].write_text("no image")
    return paths


def states(page: Page, url: str, files: list[Path], shot: str) -> None:
    """Every state of the page, a file each that begins with `shot`."""
    page.goto(url)
    page.get_by_text("Model ").wait_for()
    page.screenshot(path=f"{shot}-empty.jpg", full_page=True, quality=85)
    page.locator("#choose").set_input_files(files[0])
    page.get_by_role("button", name="Why?").wait_for()
    page.screenshot(path=f"{shot}-one.jpg", full_page=True, quality=85)
    page.get_by_role("button", name="Why?").click()
    page.get_by_role("listbox").wait_for(timeout=60_000)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.screenshot(path=f"{shot}-why.jpg", full_page=True, quality=85)
    page.get_by_role("button", name="Clear").click()
    page.locator("#choose").set_input_files(files)
    page.locator("#progress").wait_for(state="hidden", timeout=60_000)
    page.screenshot(path=f"{shot}-many.jpg", full_page=True, quality=85)


def main(url: str, to: Path) -> None:
    """Take them, in light and dark, wide and narrow."""
    to.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for screen, (width, height) in SCREENS.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": width, "height": height},
                    color_scheme="light" if scheme == "light" else "dark",
                )
                states(page, url, images(Path(folder)), str(to / f"{screen}-{scheme}"))
                page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
