"""How many requests the stages send, of how many tokens."""

import math
from collections.abc import Sequence

from etils import epath

from common import data_file
from common.records import read_tasks
from common.text.prompt_file import Prompt
from datagen.chat.config import ChatRequest, size
from datagen.config import DATAGEN_PROMPTS, DatagenConfig
from datagen.responses import ANSWER_TOKENS, RATING_ATTEMPTS, RATING_TOKENS
from datagen.tasks import TOKENS_PER_TASK
from datagen.writing.pool import INITIAL_YIELD
from datagen.writing.requests import Teacher
from evaluation.config import EvaluationConfig
from evaluation.grading.grader import GRADE_TOKENS
from evaluation.inputs.benchmarks import Item
from evaluation.judging.judges import Judge
from launch.lib.stage import entries
from launch.paper.estimates import Estimate, asking

LEAST_KEPT = 0.35
"""Share of the tasks in replies that is kept, at least, in the range that is stated."""

ANSWER = "word" * ANSWER_TOKENS
TASK = "word" * TOKENS_PER_TASK


def tasks(config: DatagenConfig) -> Estimate:
    """The requests for tasks: how many depends on how many of those written are kept."""
    prompt = Prompt.read(config.tasks.prompt, DATAGEN_PROMPTS)
    teacher = Teacher(config.tasks, prompt, read_tasks(config.tasks.seeds))
    chat = config.within(config.teacher)
    typical = size(teacher.request(teacher.examples(0, [])).body(chat))
    whole = config.tasks.num_tasks / config.tasks.tasks_per_request
    least, usual, most = (math.ceil(whole / share) for share in (1, INITIAL_YIELD, LEAST_KEPT))
    written = config.tasks.tasks_per_request * TOKENS_PER_TASK
    return asking(chat, [typical] * usual, written, least, most)


def responses(config: DatagenConfig, kept: epath.Path) -> Estimate:
    """One for each task that is kept, and up to three for each rating."""
    number = count(kept, config.tasks.num_tasks)
    least = number if kept.exists() else 0
    prompt = Prompt.read(config.responses.prompt, DATAGEN_PROMPTS)
    chat = config.within(config.responder)
    request = ChatRequest(*prompt.fill(task=TASK), prompt.version)
    found = asking(chat, [size(request.body(chat))] * number, ANSWER_TOKENS, least)
    if config.responses.min_rating:
        prompt = Prompt.read(config.responses.rating_prompt, DATAGEN_PROMPTS)
        rater = config.within(config.rater)
        request = ChatRequest(*prompt.fill(task=TASK, answer=ANSWER), prompt.version)
        sizes = [size(request.body(rater))] * number
        found += asking(rater, sizes, RATING_TOKENS, least, RATING_ATTEMPTS * number)
    return found


def references(config: EvaluationConfig, items: Sequence[Item]) -> Estimate:
    """One for each item."""
    chat = config.within(config.chat)
    bodies = (ChatRequest("", item.text, "").body(chat) for item in items)
    return asking(chat, [*map(size, bodies)], ANSWER_TOKENS)


def judging(config: EvaluationConfig, items: Sequence[Item], pairs: int) -> Estimate:
    """One for each judge's prompt, item, pair of answers and order; more without verdicts."""
    chat, total = config.within(config.chat), Estimate()
    for judge in map(Judge.load, entries(config.judges)):
        sizes = [size(judge.request(item.text, ANSWER, ANSWER).body(chat)) for item in items]
        number = 2 * pairs * len(items)
        most = number * (1 + config.reasks)
        tokens = judge.spec.typical_tokens
        total += asking(chat, sizes * 2 * pairs, tokens, number, most)
    return total


def choices(files: Sequence[str]) -> Estimate:
    """One for each question, to a server of our own."""
    number = sum(count(epath.Path(file), 0) for file in files)
    return Estimate(requests=number, least=number, most=number)


def rubric(config: EvaluationConfig, file: str) -> Estimate:
    """One for each criterion to the grader, who may be asked again, and one for each answer."""
    chat, path = config.within(config.chat), epath.Path(file)
    records = [record for _, record in data_file.read(path)] if path.exists() else []
    criteria = sum(len(record.get("rubrics") or [0]) for record in records)
    typical = size(ChatRequest("", TASK + 2 * ANSWER, "").body(chat))
    most = criteria * (1 + config.reasks)
    graded = asking(chat, [typical] * criteria, GRADE_TOKENS, criteria, most)
    return graded + Estimate(requests=len(records), least=len(records), most=len(records))


def count(path: epath.Path, otherwise: int) -> int:
    """The number of records in a file, or another number where there is none yet."""
    return sum(1 for _ in data_file.read(path)) if path.exists() else otherwise
