"""What is kept of the replies, whatever the order in which they arrive."""

import pytest

from common.records import read_tasks
from datagen.chat.errors import Failure
from datagen.chat.replies import ChatAnswer
from datagen.writing.filters import Filters
from datagen.writing.pool import MAX_USELESS_REPLIES, Pool, TaskCollector
from tests.datagen.test_tasks import make_config
from tests.datagen.writing.test_filters import make_task
from tests.datagen.writing.test_requests import SEEDS, make_teacher
from tests.support import teacher


def make_pool(**changes) -> Pool:
    config = make_config(**changes)
    return Pool(config.tasks, Filters(config.filters), read_tasks(SEEDS))


def test_near_duplicates_of_seeds_test_sets_and_each_other_go(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"id": "q", "instruction": "Name five signs of sepsis."}')
    pool = make_pool(tasks__against=str(tmp_path / "test.jsonl"))
    seed = read_tasks(SEEDS)[0]
    pool.add(make_task(seed.instruction, name="a"))
    pool.add(make_task("Name four signs of sepsis.", name="b"))
    pool.add(make_task(name="c"))
    pool.add(make_task("Explain the causes of gout to us.", name="d"))
    assert [task.id for task in pool.kept] == ["c"]
    assert [(r["id"], r["nearest"]["id"]) for r in pool.rejected] == [
        ("a", f"seed {seed.id}"),
        ("b", f"{tmp_path / 'test.jsonl'} q"),
        ("d", "c"),
    ]
    assert pool.reasons() == {"near-duplicate": 3}
    pool = make_pool(tasks__threshold=0.0)
    pool.add(make_task(name="c"))
    pool.add(make_task(name="d"))
    assert len(pool.kept) == 2, "0 switches the filter off"


def answer(text: str, finish: str = "stop") -> ChatAnswer:
    return ChatAnswer(text, finish, "stand-in-1", "reply-1", 1, 1)


def replies(count: int) -> list[ChatAnswer]:
    bodies = ({"messages": [{"content": f"new tasks {i}"}]} for i in range(count))
    return [answer(teacher.write_tasks(body)) for body in bodies]


def write(order, given, *, gap=0, **changes) -> TaskCollector:
    """Takes replies in as `order` says, as far as they were asked for."""
    config = make_config(**changes)
    pool = Pool(config.tasks, Filters(config.filters), read_tasks(SEEDS))
    collector = TaskCollector(make_teacher(config.tasks), pool, gap=gap)
    collector.asked = {}
    requests, out = collector.requests(), []
    while True:
        while item := next(requests, None):
            index, request = item
            collector.asked[index] = request
            out.append(index)
        if not out:
            return collector
        index = order(out)
        out.remove(index)
        collector.add(index, given[index])


@pytest.mark.parametrize("machine", [0, 2])
def test_the_order_in_which_replies_come_changes_nothing(machine):
    changes = {"tasks__machine_tasks_per_request": machine, "tasks__machine_lag": 3}
    given = replies(40)
    first = write(min, given, **changes)
    last = write(max, given, **changes)
    assert first.pool.kept == last.pool.kept and len(first.pool.kept) == 60
    for index in first.asked.keys() & last.asked.keys():
        assert first.asked[index] == last.asked[index]
    if machine:
        own = {task.instruction for task in first.pool.kept}
        shown = [sum(text in request.user for text in own) for request in first.asked.values()]
        assert shown[:3] == [0, 0, 0] and shown[3:] == [2] * len(shown[3:])


def test_no_more_is_asked_than_should_do():
    collector = write(min, replies(40))
    assert collector.num_read <= 8, "some 10 of 12 tasks are kept"
    assert collector.unused <= 2
    assert len({task.id for task in collector.pool.kept}) == 60


def test_what_is_no_task_is_kept_with_its_reason():
    flawed = [
        Failure("no answer in 8 attempts"),
        answer("I'd rather not.", "refusal"),
        answer("no list at all"),
        answer(replies(1)[0].text[:-20], "length"),
    ]
    collector = write(min, flawed + replies(40))
    reasons = collector.pool.reasons()
    assert reasons["no reply"] == 1
    assert reasons["the reply ends with refusal"] == 1
    assert reasons["no task"] == 1
    assert reasons["cut at the length limit"] == 1
    assert reasons["near-duplicate"] >= 1 and reasons["difficulty is not 1 to 5"] >= 1
    rejected = {r["reason"]: r for r in collector.pool.rejected}
    assert rejected["no reply"]["text"] == "no answer in 8 attempts"
    assert rejected["no task"]["source"]["request"] == 2


def test_a_teacher_that_says_nothing_new_is_not_paid_for_ever():
    same = [replies(1)[0]] * (MAX_USELESS_REPLIES + 20)
    with pytest.raises(ValueError, match=r"contained no task to keep; .* near-duplicate"):
        write(min, same)


def test_replies_that_give_nothing_are_shown_early(capsys):
    said = [answer("Let me think about the wards first.")] * 10
    collector = write(min, said + replies(40))
    assert len(collector.pool.kept) > 20
    told = capsys.readouterr().err
    assert told.count("the first 10 replies contained no task to keep") == 1
    assert "10 no task; one of them begins: 'Let me think about" in told
    write(min, said[:9] + replies(40))
    assert "no task to keep" not in capsys.readouterr().err


def test_offline_what_stands_behind_a_batch_that_has_not_come_is_read_too():
    waiting = [Failure("offline, and the answer is not in the store")] * 50
    collector = write(min, [*waiting, *replies(3), *waiting, *waiting], gap=60)
    assert len(collector.pool.kept) > 20 and collector.missing == 110
    assert "no reply" not in collector.pool.reasons()
