"""LangChain's own standard tests of a chat model, against a gateway: OPENAI_BASE_URL, OPENAI_API_KEY and
MODEL say where. What needs a model that can call tools or see images is turned off by the properties."""

# mypy: ignore-errors
# (LangChain is in an environment of its own: ./install.)

import os

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestGateway(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {"model": os.environ["MODEL"], "max_retries": 0, "timeout": 20, "stream_usage": True}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return False
