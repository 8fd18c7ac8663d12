"""What requests may hold, checked before anything is done with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from prefheads.data.chat import Turn
from prefheads.types import Mode

NAME = r"^[A-Za-z0-9][A-Za-z0-9._@:|+=-]{0,127}$"

# What OpenAI's API has and this one has not: taken where it asks for nothing, refused otherwise.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
}
OF_ANSWERS = ("annotations", "audio", "function_call", "refusal", "tool_calls")


def _writable(text: str) -> str:
    """Text that can be written down and kept anywhere."""
    if "\x00" in text:
        raise ValueError("must not hold the character NUL")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half a character (a lone surrogate)")
    return text


Text = Annotated[str, AfterValidator(_writable)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(pattern=NAME)]


class Strict(BaseModel):
    """No conversions, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Part(Strict):
    """A part of a message; texts only."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _sent_back(cls, data: Any) -> Any:
        """An answer that a client sends back with the chat holds fields that are empty."""
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if k not in OF_ANSWERS or v not in (None, [])}

    @property
    def turn(self) -> Turn:
        """The turn as templates know it."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return Turn(role, self.content)
        return Turn(role, "\n".join(part.text for part in self.content))


class StreamOptions(Strict):
    """What a stream holds besides the text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Request(Strict):
    """What chats and completions share."""

    model: str
    user: Name | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    gamma: float | None = Field(None, ge=0)
    mode: Literal[Mode, "off"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name in data.keys() & NEUTRAL.keys():
            if data[name] is not None and data[name] not in NEUTRAL[name]:
                raise ValueError(f"{name} is not supported but for its default")
        kept = {k: v for k, v in data.items() if k not in NEUTRAL}
        # Clients write null for what they leave to the server.
        return {k: v for k, v in kept.items() if v is not None or k in ("model", "messages")}

    @model_validator(mode="after")
    def _consistent(self) -> Request:
        if self.user is None and (self.gamma or self.mode in ("contrast", "amplify")):
            raise ValueError("steering is for a profile: name it in user")
        if self.mode == "off" and self.gamma:
            raise ValueError('a gamma above 0 contradicts the mode "off"')
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for streams")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """All stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _asks(self) -> ChatRequest:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        if not self.messages[-1].turn.content.strip():
            raise ValueError("the last message is empty")
        return self


class CompletionRequest(Request):
    """``POST /v1/completions``."""

    prompt: Annotated[Text, Field(min_length=1)]


class Item(BaseModel):
    """A text of a user: ``text``, or the fields that the task of the run wants, and an id.

    An item that is sent twice with the same id is kept once, so that a client may send again what
    it has no answer for.
    """

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, Text] = Field(init=False)

    id: Name | None = None

    @property
    def fields(self) -> dict[str, str]:
        """All but the id."""
        return dict(self.__pydantic_extra__ or {})


class Items(Strict):
    """Items for a profile."""

    items: list[Item] = Field(max_length=10_000)
