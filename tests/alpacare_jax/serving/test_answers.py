"""What the server answers, asked by the openai client: chats, completions, models."""

import json

import numpy as np
import openai
import pytest

from alpacare_jax.checkpoints.export import to_hf
from tests.conftest import WORDS

pytestmark = pytest.mark.usefixtures("quickly_compiled")

QUESTIONS = ["what is fever", "why", "患者 ≥ 37.5 °C", "treat the heart with a drug and a dose"]


@pytest.fixture(scope="module")
def client(served) -> openai.OpenAI:
    return served.client()


def texts(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_greedy_answers_are_those_of_generate_whole_and_streamed(served, generated):
    rows = generated(QUESTIONS)
    assert len({row["output"] for row in rows}) == len(rows)
    for question, row in zip(QUESTIONS, rows, strict=True):
        found = served.ask(question, max_tokens=40)
        (choice,) = found.choices
        assert choice.message.content == row["output"]
        assert choice.finish_reason == row["finish_reason"]
        assert found.usage.completion_tokens == row["num_tokens"]
        assert texts(served.ask(question, max_tokens=40, stream=True)) == row["output"]


def test_a_stop_string_ends_an_answer_as_in_generate(served, generated):
    longest = max((row["output"] for row in generated(QUESTIONS)), key=len)
    stop = longest[6:9]
    for question, row in zip(QUESTIONS, generated(QUESTIONS, stop=[stop]), strict=True):
        found = served.ask(question, max_tokens=40, stop=[stop])
        assert found.choices[0].message.content == row["output"]
        assert found.choices[0].finish_reason == row["finish_reason"]
        assert found.usage.completion_tokens == row["num_tokens"]
        assert texts(served.ask(question, max_tokens=40, stop=stop, stream=True)) == row["output"]


def test_a_stream_is_made_of_openais_events(served):
    chunks = list(
        served.ask(
            "why", max_tokens=20, n=2, stream=True, stream_options={"include_usage": True}, seed=3
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *middle, last = chunks
    assert last.choices == [] and last.usage.total_tokens == last.usage.prompt_tokens + 40
    assert all(chunk.usage is None for chunk in middle)
    for number in (0, 1):
        mine = [c.choices[0] for c in middle if c.choices[0].index == number]
        assert mine[0].delta.role == "assistant" and mine[-1].finish_reason == "length"
        assert all(choice.finish_reason is None for choice in mine[:-1])
    raw = served.post(
        "/v1/completions", {"model": served.name, "prompt": "a", "max_tokens": 2, "stream": True}
    )
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.headers["x-accel-buffering"] == "no"
    assert raw.text.endswith("data: [DONE]\n\n")


def test_choices_of_a_seed_are_the_same_whatever_else_runs(served, client):
    def drawn(**changes):
        found = served.ask("why", max_tokens=12, temperature=1.5, n=3, **changes)
        return [choice.message.content for choice in found.choices]

    first = drawn(seed=11)
    assert len(set(first)) == 3
    client.completions.create(model=served.name, prompt=["a", "b"], max_tokens=3)
    assert drawn(seed=11) == first == drawn(seed=11 - 2**62) and drawn(seed=12) != first
    assert drawn() != drawn(), "a seed is drawn where none is sent"


def test_sampling_settings_reach_the_engine(served, source):
    heart, drug = (source.tokenizer.encode(x, continuation=True)[0] for x in (" heart", " drug"))
    bias = {str(heart): 100, str(drug): 92}

    def said(**changes) -> str:
        return served.ask("why", **{"max_tokens": 8} | changes).choices[0].message.content

    assert said(logit_bias=bias, max_tokens=3) == "heart heart heart"
    assert "drug" in said(logit_bias=bias, frequency_penalty=2)
    for penalty in ("presence_penalty", "repetition_penalty"):
        assert said(max_tokens=40, extra_body={penalty: 2}) != said(max_tokens=40)
    for narrow in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}):
        assert said(temperature=1, **narrow) == said()


def test_chat_logprobs_are_of_the_tokens_of_the_answer(served):
    found = served.ask("why", max_tokens=8, logprobs=True, top_logprobs=3).choices[0]
    content = found.logprobs.content
    assert len(content) == 8 and all(len(token.top_logprobs) == 3 for token in content)
    joined = b"".join(bytes(token.bytes) for token in content).decode("utf-8", "replace")
    assert joined.strip() == found.message.content
    for token in content:
        assert token.top_logprobs[0].token == token.token, "greedy"
        assert token.logprob == token.top_logprobs[0].logprob
    streamed = served.ask("why", max_tokens=8, logprobs=True, top_logprobs=3, stream=True)
    parts = [c.choices[0].logprobs.content for c in streamed if c.choices and c.choices[0].logprobs]
    assert [token for part in parts for token in part] == content


def test_completions_take_texts_and_ids_one_or_many(served, client, source):
    prompts = ["the heart", "患者"]
    found = client.completions.create(
        model=served.name, prompt=prompts, max_tokens=6, temperature=0, n=2, seed=1
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    bos = source.tokenizer.bos_id
    ids = [[bos, *source.tokenizer.encode(text)] for text in prompts]
    by_ids = client.completions.create(model=served.name, prompt=ids, max_tokens=6, temperature=0)
    assert [c.text for c in by_ids.choices] == [c.text for c in found.choices[::2]]
    (one,) = client.completions.create(
        model=served.name, prompt=ids[0], max_tokens=6, temperature=0
    ).choices
    assert one.text == found.choices[0].text
    assert found.usage.prompt_tokens == sum(map(len, ids))


def test_echoed_logprobs_are_those_of_transformers(
    served, client, source, model_directory, torch, transformers, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("exported") / "tiny-medic"
    to_hf(model_directory, folder, step="best", dtype="float32")
    reference = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [" ".join(WORDS[:9]), "患者 🩺 has a fever", "a", " ".join(WORDS) * 3]
    for limit in (0, 1, 7):
        found = client.completions.create(
            model=served.name,
            prompt=prompts,
            max_tokens=limit,
            temperature=0,
            echo=True,
            logprobs=5,
        )
        for prompt, choice in zip(prompts, found.choices, strict=True):
            scored = choice.logprobs
            ids = source.tokenizer.encode(prompt)
            assert choice.text.startswith(prompt)
            assert len(scored.tokens) == len(scored.top_logprobs) == len(scored.text_offset)
            n = len(ids)
            if limit == 0:
                assert len(scored.tokens) == n and choice.text == prompt
            check_offsets(prompt, source.tokenizer, ids, scored)
            bos = source.tokenizer.bos_id
            with torch.no_grad():
                logits = reference(torch.tensor([[bos, *ids]])).logits[0]
            logprobs = torch.log_softmax(logits.double(), -1).numpy()
            expected = logprobs[np.arange(n), ids]
            np.testing.assert_allclose(scored.token_logprobs[:n], expected, atol=1e-4)
            for position, top in enumerate(scored.top_logprobs[:n]):
                best = np.sort(logprobs[position])[::-1][:5]
                np.testing.assert_allclose(
                    max(top.values()), max(best[0], expected[position]), atol=1e-4
                )
            if limit:
                np.testing.assert_allclose(scored.token_logprobs[n], logprobs[n].max(), atol=1e-4)


def check_offsets(prompt, tokenizer, ids, scored) -> None:
    """Each token begins where its offset says; parts of a character where that begins."""
    for number, (token, offset) in enumerate(zip(scored.tokens, scored.text_offset, strict=True)):
        if number < len(ids) and not token.startswith("bytes:"):
            assert prompt[offset:].startswith(token)
    assert scored.text_offset == sorted(scored.text_offset) and scored.text_offset[0] == 0


def test_text_offsets_beside_invalid_utf8(served, client):
    found = client.completions.create(
        model=served.name, prompt="why", n=4, max_tokens=60, seed=1, logprobs=0, echo=True
    )
    for choice in found.choices:
        assert "\ufffd" in choice.text
        for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
            if not token.startswith(("bytes:", "token_id:", "</s>")):
                assert choice.text[offset:].startswith(token)


def test_ids_without_bos_have_no_logprob_of_the_first(served, client, source):
    ids = source.tokenizer.encode("the heart")
    found = client.completions.create(
        model=served.name, prompt=ids, max_tokens=1, echo=True, logprobs=1
    )
    scored = found.choices[0].logprobs
    assert scored.token_logprobs[0] is None and scored.top_logprobs[0] is None
    assert len(scored.tokens) == len(ids) + 1 and None not in scored.token_logprobs[1:]
    bos = client.completions.create(
        model=served.name, prompt=[1], max_tokens=0, echo=True, logprobs=1
    )
    assert bos.choices[0].text == "" and bos.choices[0].logprobs.token_logprobs == [None]


def test_the_end_token_is_among_the_tokens_of_a_completion(served, client, source):
    """Harnesses leave out the last token, whatever it is."""
    eos = source.tokenizer.eos_id
    found = client.completions.create(
        model=served.name,
        prompt="the heart",
        max_tokens=5,
        echo=True,
        logprobs=1,
        logit_bias={str(eos): 100},
    )
    (choice,) = found.choices
    assert choice.finish_reason == "stop" and choice.text == "the heart"
    assert choice.logprobs.tokens[-1] == "</s>" and found.usage.completion_tokens == 0
    assert len(choice.logprobs.tokens) == 1 + len(source.tokenizer.encode("the heart"))
    assert choice.logprobs.token_logprobs[-1] < 0 and choice.logprobs.text_offset[-1] == 9
    chat = served.ask("why", logprobs=True, logit_bias={str(eos): 100}).choices[0]
    assert chat.message.content == "" and chat.logprobs is None


def test_json_answers_are_checked(served, source):
    """A bias makes the model write {}; without one it writes no JSON."""
    brace = {str(source.tokenizer.encode(text)[0]): bias for text, bias in (("{", 90), ("}", 88))}
    bad = {"model": served.name, "messages": [{"role": "user", "content": "why"}], "max_tokens": 4}
    for stream in (False, True):
        answer = served.post(
            "/v1/chat/completions",
            bad | {"response_format": {"type": "json_object"}, "temperature": 0, "stream": stream},
        )
        error = json.loads(answer.text.split("data: ")[-1])["error"]
        assert error["code"] == "invalid_json" and error["param"] == "response_format"
        assert error["answer"] and "leave out response_format" in error["message"]
        assert stream or answer.status_code == 422
    found = served.ask(
        "why",
        max_tokens=2,
        logit_bias=brace,
        frequency_penalty=2,
        presence_penalty=2,
        response_format={"type": "json_object"},
    )
    assert json.loads(found.choices[0].message.content) == {}


def test_models_are_listed_and_others_are_not_found(served, client):
    (model,) = client.models.list().data
    assert model.id == served.name == client.models.retrieve(served.name).id
    assert model.max_model_len == 512 and model.template == "alpaca"
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here; the model is"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here"):
        served.ask("why", model="gpt-4")


def test_an_answer_can_be_sent_back_as_the_client_has_it(served):
    messages: list = [{"role": "user", "content": "why"}]
    for question in ("what", "how"):
        answer = served.ask("", messages=messages, max_tokens=5).choices[0].message
        messages += [answer.model_dump() | {"annotations": []}]
        messages += [{"role": "user", "content": question}]
    found = served.post("/apply-template", {"messages": messages}).json()
    assert answer.content in found["prompt"] and "annotations" not in found["prompt"]


def test_bookkeeping_fields_are_named_and_change_nothing(served):
    body = {"model": served.name, "messages": [{"role": "user", "content": "why"}], "seed": 1}
    plain = served.post("/v1/chat/completions", body | {"max_tokens": 5})
    named = served.post(
        "/v1/chat/completions", body | {"max_tokens": 5, "user": "me", "metadata": {"a": "b"}}
    )
    assert named.headers["x-fields-without-effect"] == "user, metadata"
    assert "x-fields-without-effect" not in plain.headers
    assert named.json()["choices"] == plain.json()["choices"]


def test_the_prompt_that_the_model_reads_can_be_seen(served):
    messages = [{"role": "user", "content": "What is </s> gout?"}]
    found = served.post("/apply-template", {"messages": messages}).json()
    assert found["prompt"].startswith("<s>Below is an instruction")
    assert "### Instruction:\nWhat is </s> gout?\n\n### Response:" in found["prompt"]


def test_health_and_metrics_count_what_happened(served):
    assert served.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    before = metrics(served)
    answer = served.ask("why", max_tokens=5).choices[0].message.content
    after = metrics(served)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["alpacare_completion_tokens_total"] == 5
    assert grown['alpacare_requests_total{path="/v1/chat/completions",status="200"}'] == 1
    assert grown["alpacare_first_token_seconds_count"] == 1
    assert after["alpacare_answers_running"] == after["alpacare_answers_waiting"] == 0
    ended = 'alpacare_answers_total{finish_reason="%s"}'
    assert grown[ended % "length"] == 1
    served.ask("why", max_tokens=5, stop=answer[0])
    assert metrics(served)[ended % "stop"] == after.get(ended % "stop", 0) + 1


def metrics(served) -> dict[str, float]:
    lines = served.get("/metrics").text.splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}
