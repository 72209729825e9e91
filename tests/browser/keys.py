"""Pressing keys as people do: they see the page before they press any."""

from playwright.sync_api import Page


def press(page: Page, *keys: str) -> None:
    """A page shows its text before its scripts listen to keys; by DOMContentLoaded they do."""
    page.wait_for_load_state("domcontentloaded")
    for key in keys:
        page.keyboard.press(key)
