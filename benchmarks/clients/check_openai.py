"""What an app does with the `openai` package, whatever its major version: OPENAI_BASE_URL, OPENAI_API_KEY
and MODEL say where. Ends with the version that was tried; raises on the first thing that is not right."""

import asyncio
import os
from typing import Any

import openai

MODEL = os.environ["MODEL"]
ASK: Any = [{"role": "user", "content": "Hello?"}]
client = openai.OpenAI(max_retries=0, timeout=20)

whole = client.chat.completions.create(model=MODEL, messages=ASK)
text = whole.choices[0].message.content
assert text and whole.usage and whole.usage.total_tokens > 0

chunks = list(
    client.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
assert chunks[-1].usage and not chunks[-1].choices

raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
assert raw.headers["x-stillhouse-version"] == raw.parse().model

assert client.completions.create(model=MODEL, prompt="Once").choices[0].text
assert MODEL in {model.id for model in client.models.list()}
assert client.models.retrieve(MODEL).id == MODEL
if hasattr(client, "responses"):
    assert client.responses.create(model=MODEL, input="Hello?").output_text == text
    with client.responses.stream(model=MODEL, input="Hello?") as stream:
        assert stream.get_final_response().output_text == text


async def several() -> None:
    async with openai.AsyncOpenAI(max_retries=0, timeout=20) as many:
        asked = [many.chat.completions.create(model=MODEL, messages=ASK) for _ in range(20)]
        assert {answer.choices[0].message.content for answer in await asyncio.gather(*asked)} == {text}


asyncio.run(several())

for kind, fields in (
    (openai.NotFoundError, {"model": "nobody"}),
    (openai.BadRequestError, {"model": MODEL, "temperature": 9}),
):
    try:
        client.chat.completions.create(messages=ASK, **fields)
    except kind as error:
        assert error.code and error.request_id
    else:
        raise AssertionError(f"no {kind.__name__}")
try:
    openai.OpenAI(api_key="sk-wrong", max_retries=0).models.list()
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key"
else:
    raise AssertionError("a wrong key was let in")
print("openai", openai.__version__)
