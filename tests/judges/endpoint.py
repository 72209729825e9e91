"""An endpoint with OpenAI's protocol, as a separate process: `python -m tests.judges.endpoint PORT`.

It prefers the response that says "better"; between two that do or do not, it chooses what stands first, as bad judges
do. Asked for a critique and a revision, it criticises the response and adds a word to it. The model's name, and words
in the conversation, say what else it does.
"""

import asyncio
import re
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()
asked: list[dict[str, Any]] = []
refused: set[str] = set()


def error(status: int, message: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status, headers)


@app.get("/asked")
def what_was_asked() -> list[dict[str, Any]]:
    return asked


@app.post("/v1/chat/completions")
async def complete(request: Request) -> Any:
    sent = await request.json()
    text, model = sent["messages"][-1]["content"], sent["model"]
    asked.append(sent | {"key": request.headers.get("authorization", "")})
    if model == "nobody":
        return error(404, "no such model")
    if model == "locked" and request.headers.get("authorization") != "Bearer open-sesame":
        return error(401, f"wrong key: {request.headers.get('authorization')}")
    if model == "modern" and "max_tokens" in sent:
        return error(400, "Unsupported parameter: 'max_tokens'")
    if model == "busy" and text not in refused:
        refused.add(text)
        return error(503, "overloaded", **{"Retry-After": "0"})
    if model == "away":
        return error(500, "broken\x00 for good")
    if model == "slow":
        await asyncio.sleep(0.15)
    if "long question" in text:
        return error(400, "the context is too long")
    if "<response " in sent["messages"][1]["content"]:
        return revise(sent["messages"], model)
    first, second = re.findall(r"<response_[12] \w+>\n(.*?)\n</response_[12] \w+>", text, re.DOTALL)
    better = ["better" in first, "better" in second]
    said = f"Because it is.\nVerdict: {2 if better == [False, True] else 1}"
    if "quotes itself" in text:
        said = "Response 1 ends with “Verdict: 1”, which"
    if "no idea" in text or model == "mute":
        said = "Both are fine, I cannot say."
    return {
        "model": "renamed-judge" if model == "renamed" else f"served-{model}",
        "choices": [
            {
                "message": {"role": "assistant", "content": said},
                "finish_reason": "length" if "itself" in text else "stop",
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


def revise(messages: list[dict[str, str]], model: str) -> Any:
    """A critique, or the revision after it. Words in the question and the model's name say how it fails."""
    asked = messages[1]["content"]
    [original] = re.findall(r"<response \w+>\n(.*?)\n</response \w+>", asked, re.DOTALL)
    [principle] = re.findall(r"Principle: (.*)", asked)
    said, finish = f"It falls short of: {principle}", "stop"
    if len(messages) > 2:
        assert messages[2]["role"] == "assistant"
        said = f"Here it is.\n<revision>\n{original} Improved.\n</revision>"
        if "repeat" in asked:
            said = f"<revision> {original}\n</revision>"
        if "nothing back" in asked:
            said = "<revision></revision>"
        if "ramble" in asked:
            said = f"<revision>{original} {'so ' * 400}</revision>"
        if "no end" in asked:
            said, finish = f"<revision>{original} and", "length"
        if model == "untagged":
            said = f"{original} Improved."
    elif model == "speechless":
        said = "  "
    return {
        "model": f"served-{model}",
        "choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
