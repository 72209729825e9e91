"""Pictures of pages for people to look at, kept where the environment variable SCREENSHOTS names a folder."""

import os

from playwright.sync_api import Page


def take_picture(page: Page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
