"""A headless browser: it follows redirects, keeps cookies, reads pages and submits the forms in them."""

from typing import Any

import httpx
from bs4 import BeautifulSoup, Tag

from app.errors import PrefloopError, Unavailable


class Page:
    """A page from an HTTP response."""

    def __init__(self, response: httpx.Response) -> None:
        self.url = response.url
        self.soup = BeautifulSoup(response.text, "html.parser")

    def text(self, selector: str) -> str | None:
        """Return the text of the first element that matches, or None."""
        found = self.soup.select_one(selector)
        return found.get_text(" ", strip=True) if found else None

    def form(self, selector: str) -> "Form":
        found = self.soup.select_one(selector)
        if found is None:
            raise PrefloopError(f"{self.url} has no form {selector}.", "Is the service of the same version?")
        return Form(found, str(self.url), self.soup)


class Form:
    """A form's address and its initial values; if several lists share a name, their values are in order."""

    def __init__(self, form: Tag, url: str, page: Tag) -> None:
        self.action = str(form.get("action") or url)
        self.values: dict[str, Any] = {}
        self.choices: dict[str, list[str]] = {}
        controls = form.select("input[name], textarea[name], select[name]")
        if form.get("id"):  # controls outside the form element
            controls += page.select(f'[name][form="{form["id"]}"]')
        for control in controls:
            name, kind = str(control["name"]), control.get("type")
            if kind in ("radio", "checkbox"):
                self.choices.setdefault(name, []).append(str(control.get("value", "on")))
                if not control.has_attr("checked"):
                    continue
            if control.name == "select":
                chosen = control.select_one("option[selected]") or control.select_one("option")
                self._add(name, str(chosen["value"]) if chosen else "")
            elif control.name == "textarea":
                self.values[name] = control.get_text()
            elif kind == "checkbox":
                self.values.setdefault(name, []).append(str(control.get("value", "on")))
            else:
                self.values[name] = str(control.get("value", ""))

    def _add(self, name: str, value: str) -> None:
        before = self.values.get(name)
        self.values[name] = value if before is None else [*(before if isinstance(before, list) else [before]), value]


class Browser:
    """One person's browser. Use it only in one thread."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, follow_redirects=True, timeout=60)

    def close(self) -> None:
        self._http.close()

    def open(self, url: str) -> Page:
        return Page(self._checked(self._request("GET", url)))

    def json(self, url: str, **parameters: Any) -> Any:
        return self._checked(
            self._request("GET", url, params=parameters, headers={"accept": "application/json"})
        ).json()

    def lines(self, url: str, **parameters: Any) -> list[str]:
        """Return the lines of a downloaded file."""
        return self._checked(self._request("GET", url, params=parameters)).text.splitlines()

    def send(self, form: Form, **changes: Any) -> Page:
        return Page(self._checked(self._request("POST", form.action, data=form.values | changes)))

    def _request(self, method: str, url: str, **kwargs: Any) -> httpx.Response:
        try:
            return self._http.request(method, url, **kwargs)
        except httpx.HTTPError as error:
            raise Unavailable(f"{url} does not answer: {error}.", "Is `prefloop up` running there?") from error

    @staticmethod
    def _checked(response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        soup = BeautifulSoup(response.text, "html.parser")
        # A refused form has the reason at its top; every page also has an empty element for alerts of scripts.
        places = [*soup.select("[role=alert]"), *soup.select("main, .message")]
        said = (" ".join(place.get_text(" ", strip=True).split()) for place in places)
        reason = next(filter(None, said), response.text[:300])
        raise PrefloopError(f"{response.request.method} {response.url.path} answered {response.status_code}: {reason}")
