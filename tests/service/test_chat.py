"""OpenAI's routes, asked by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest


@pytest.fixture
def client(service: Any) -> Iterator[openai.OpenAI]:
    """A client that needs to know no more than an address."""
    with openai.OpenAI(base_url=f"{service.address}/v1", api_key="any", max_retries=0) as client:
        yield client


def _ask(client: openai.OpenAI, model: str, **options: Any) -> Any:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Mary?"}]
    return client.chat.completions.create(**{"model": model, "messages": messages, "max_tokens": 8, **options})


def test_a_document_answers_as_a_model(service: Any, client: openai.OpenAI, story: str) -> None:
    document = service.encode(story)
    body = {"question": "Where is Mary?", "max_tokens": 8}
    own = service.client.post(f"/documents/{document['id']}/ask", json=body).json()

    completion = _ask(client, document["id"])

    assert completion.model == document["id"]
    assert completion.choices[0].message.content == own["answer"]
    assert completion.choices[0].finish_reason == own["finish_reason"]
    assert completion.usage.prompt_tokens == own["usage"]["prompt_tokens"]
    assert completion.usage.completion_tokens == own["usage"]["completion_tokens"]
    assert completion.usage.total_tokens == sum(own["usage"].values())


def test_a_streamed_completion_is_the_same_in_chunks(service: Any, client: openai.OpenAI, story: str) -> None:
    document = service.encode(story)
    whole = _ask(client, document["id"])

    chunks = list(_ask(client, document["id"], stream=True, stream_options={"include_usage": True}))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in _ask(client, document["id"], stream=True))


def test_the_base_model_and_documents_are_listed(service: Any, client: openai.OpenAI, story: str) -> None:
    document = service.encode(story)

    listed = [model.id for model in client.models.list()]

    assert listed[0] == document["model"]
    assert document["id"] in listed
    for model in (document["id"], document["model"]):
        assert client.models.retrieve(model).id == model
    assert _ask(client, document["model"]).usage.completion_tokens == 8


def test_the_last_message_of_the_user_is_the_question(service: Any, client: openai.OpenAI, story: str) -> None:
    document = service.encode(story)
    turns = [
        {"role": "user", "content": "Who is John?"},
        {"role": "assistant", "content": "A man."},
        {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "Mary?"}]},
    ]

    answer = _ask(client, document["id"], messages=turns, user="someone", n=1, frequency_penalty=0.0)

    assert answer.choices[0].message.content == _ask(client, document["id"]).choices[0].message.content


def test_errors_are_those_that_the_client_knows(service: Any, client: openai.OpenAI, story: str) -> None:
    document = service.encode(story)["id"]

    with pytest.raises(openai.NotFoundError) as unknown:
        _ask(client, "gpt-4")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    for options in ({"n": 2}, {"tools": [{"type": "function"}]}, {"logprobs": True}, {"extra_body": {"unheard_of": 1}}):
        with pytest.raises(openai.BadRequestError) as unsupported:
            _ask(client, document, **options)
        assert unsupported.value.param == next(iter(options.get("extra_body", options)))
    for options, name in [({"max_tokens": 100_000}, "max_tokens"), ({"messages": []}, "messages")]:
        with pytest.raises(openai.UnprocessableEntityError) as invalid:
            _ask(client, document, **options)
        assert invalid.value.param == name
        assert invalid.value.type == "invalid_request_error"


def test_the_error_of_a_missing_path_is_openai_s_too(service: Any) -> None:
    assert set(service.client.get("/v1/nothing").json()) == {"error"}
