"""What to paste into an app. The key is left to its owner: pages never show one twice."""

import json

from django.conf import settings

MESSAGE = "Write your question here."


def python_snippet(model: str, message: str = MESSAGE) -> str:
    """A whole program with the official `openai` package."""
    return (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{settings.STILLHOUSE_URL}/v1", api_key="sk-sh-...")\n'
        "answer = client.chat.completions.create(\n"
        f"    model={json.dumps(model)},\n"
        f'    messages=[{{"role": "user", "content": {json.dumps(message, ensure_ascii=False)}}}],\n'
        ")\n"
        "print(answer.choices[0].message.content)\n"
    )


def curl_snippet(model: str, message: str = MESSAGE) -> str:
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": message}]}, ensure_ascii=False
    )
    quoted = body.replace("'", "'\\''")
    return (
        f"curl {settings.STILLHOUSE_URL}/v1/chat/completions \\\n"
        '  -H "Authorization: Bearer $STILLHOUSE_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  -d '{quoted}'\n"
    )
