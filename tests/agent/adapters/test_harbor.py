"""Harbor's folders out and in, and our sandbox under Harbor itself, run by the real package in its own interpreter."""

import asyncio
import json
import shutil

import pytest
from demonstrations import tool_tasks
from hypothesis import given
from hypothesis import strategies as st
from peers import peer, run_peer

from baleen.agent.adapters.dockerfile import RecipeError
from baleen.agent.adapters.harbor import (
    HarborEnvironment,
    HarborError,
    HarborTask,
    export_question,
    export_task,
    read_rewards,
)
from baleen.agent.environment import InfrastructureError
from baleen.agent.episode import Episode
from baleen.agent.sandbox import Sandbox, SandboxUnavailable
from baleen.agent.task import Task
from baleen.chat.messages import FunctionCall, Message, ToolCall

OURS = "baleen.agent.adapters.harbor_environment:BaleenEnvironment"
GREET = """FROM debian:12
ENV WORD=hello FOLDER=/srv/work
WORKDIR $FOLDER
COPY *.txt inner/ ./
COPY names.txt /data/list
RUN sort names.txt > sorted.txt && \\
    echo "$WORD" > word.txt
CMD ["bash"]
"""
GREETED = """#!/bin/bash
cd /srv/work
expected="hello ann, hello bob"
if [ "$(cat greeting.txt 2>/dev/null)" = "$expected" ]; then echo 1 > /logs/verifier/reward.txt
else echo 0 > /logs/verifier/reward.txt; fi
"""


@pytest.fixture(autouse=True, scope="module")
def _needs_a_file_system_of_its_own():
    async def start():
        async with Sandbox(tier="bubblewrap"):
            pass

    try:
        asyncio.run(start())
    except SandboxUnavailable as error:
        pytest.skip(f"Harbor's paths need the tier bubblewrap: {error}")


@pytest.fixture(scope="module")
def question(tmp_path_factory):
    """A task of ours whose answer is a text, exported."""
    task = tool_tasks(1)[0]
    return export_question(task, tmp_path_factory.mktemp("tasks") / "question", "it's 42 \\ $HOME\nand `so`")


@pytest.fixture(scope="module")
def greeting(question):
    """A folder as others write them: a Dockerfile with variables and steps, a reward as text, beside the first."""
    folder = question.folder.parent / "greeting"
    for name, text in {
        "task.toml": 'schema_version = "1.4"\n[environment]\nnetwork_mode = "no-network"\n',
        "instruction.md": "Greet everybody in sorted.txt, into greeting.txt.\n",
        "environment/Dockerfile": GREET,
        "environment/names.txt": "bob\nann\n",
        "environment/inner/deep/note": "n",
        "solution/solve.sh": '#!/bin/bash\nw=$(cat word.txt)\nsed "s/^/$w /" sorted.txt | paste -sd, | sed "s/,/, /" '
        "> greeting.txt\n",
        "tests/test.sh": GREETED,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return HarborTask.read(folder)


def play(task, *calls, **options):
    """Calls of tools in one episode: (their answers, the rewards)."""

    async def episode():
        environment = HarborEnvironment(**options)
        try:
            opening, tools = await environment.reset(task)
            made = [ToolCall(id="c", function=FunctionCall(name=n, arguments=json.dumps(a))) for n, a in calls]
            answers = [(await environment.step([one]))[0].content for one in made]
            return answers, await environment.verify(Episode(task, tuple(opening), tuple(tools), (), "finished"))
        finally:
            await environment.close()
            await environment.close()

    return asyncio.run(episode())


def bash(command):
    return ("bash", {"command": command})


def copied(harbor, folder, **scripts):
    """A copy of a task folder with other scripts."""
    shutil.copytree(harbor.folder, folder)
    for name, text in scripts.items():
        path = folder / name.replace("__", "/").replace("_sh", ".sh")
        path.write_text(text)
    return HarborTask.read(folder).task()


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "reward"), [("oracle", 1.0), ("nop", 0.0)])
def test_harbor_runs_our_folders_in_our_sandbox(question, greeting, tmp_path, agent, reward):
    peer("harbor")
    arguments = ["-m", "harbor.cli.main", "run", "-p", question.folder.parent, "-a", agent, "-o", tmp_path, "-q", "-y"]
    arguments += ["--environment-import-path", OURS, "--job-name", "job", "-n", "1"]
    run_peer("harbor", ["-c", "from harbor.cli.main import app; app()", *arguments[2:]], folder=tmp_path, **QUIET)
    results = [json.loads(path.read_text()) for path in (tmp_path / "job").glob("*/result.json")]
    assert {result["task_name"] for result in results} == {question.name, greeting.name}
    assert [result["exception_info"] for result in results] == [None, None]
    assert [result["verifier_result"]["rewards"] for result in results] == [{"reward": reward}] * 2


QUIET = {"HARBOR_TELEMETRY": "0"}


@pytest.fixture(scope="module")
def told(question, tmp_path_factory):
    peer("harbor")
    folder = tmp_path_factory.mktemp("class")
    done = run_peer("harbor", ["-m", "harbor_class", question.folder, folder], folder=folder, **QUIET)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_harbors_methods_do_what_harbor_means_by_them(told):
    assert told["ran"] == {"stdout": "ran in /app with x\none", "stderr": "wrong\n", "return_code": 3}
    assert told["elsewhere"]["stdout"] == "/logs/verifier\n"
    assert told["down"] == ["down/a.txt", "down/all/inner/a.txt", "down/all/run.sh"]
    assert told["is_dir"] == [True, True, False]
    assert "FileNotFoundError" in told["missing"]["error"]


@pytest.mark.slow
def test_a_command_that_takes_too_long_raises_as_in_harbors_own_environments(told):
    assert told["slow"] == {"error": "RuntimeError: Command timed out after 1 seconds"}
    assert told["after_slow"] == "well\n"


@pytest.mark.slow
def test_the_box_sees_neither_network_nor_host(told):
    assert told["network"]["return_code"] != 0
    assert told["host"]["return_code"] != 0


@pytest.mark.slow
def test_a_task_that_is_promised_a_network_is_refused_unless_it_can_do_without(told):
    assert "--ek offline=true" in told["public"]
    assert told["offline"] == "BaleenEnvironment"


def test_an_exported_task_runs_here_the_solution_scores_and_idleness_does_not(question):
    task = question.task()
    assert task.messages[0].content.endswith("Write your answer, and nothing else, to /app/answer.txt.\n")
    assert play(task)[1] == {"outcome": 0.0}
    solve = (question.folder / "solution" / "solve.sh").read_text()
    (made, ran), rewards = play(task, ("create", {"path": "solve.sh", "text": solve}), bash("sh solve.sh; pwd"))
    assert made.startswith("Wrote /app/solve.sh"), "paths are the shell's"
    assert (ran, rewards) == ("/app", {"outcome": 1.0})


def test_a_folder_of_others_is_built_run_and_judged_here(greeting):
    shown = ["/srv/work", "ann", "bob", "bob", "ann", "ndeep", "names.txt", "sorted.txt", "word.txt"]
    looked = bash('pwd; cat sorted.txt /data/list deep/note; ls; cd deep; echo "$WORD $FOLDER"')
    (seen, where), rewards = play(greeting.task(), looked, bash("pwd"))
    assert seen.split() == [*shown, "hello", "/srv/work"]
    assert where == "/srv/work/deep", "the shell stays"
    assert rewards == {"outcome": 0.0}
    solve = (greeting.folder / "solution" / "solve.sh").read_text()
    assert play(greeting.task(), bash(solve))[1] == {"outcome": 1.0}


def test_the_tests_are_not_there_before_the_verdict(question):
    (listed,), _ = play(question.task(), bash("ls -A /tests /solution"))
    assert listed.split() == ["/solution:", "/tests:"]


FORGED = """echo '{"reward": 1}' > /logs/verifier/reward.json"""


@pytest.mark.parametrize(
    "cheat",
    [
        f"{FORGED}; echo 'exit 0' > /tests/test.sh; chmod 500 /logs/verifier /tests",
        f"rm -r /workspace/tests && mkdir /app/mine && ln -s /app/mine /workspace/tests; {FORGED}",
        "rm -r /workspace/logs; touch /workspace/logs; chmod 500 /workspace",
        f"(while sleep 0.01; do {FORGED}; done) & disown",
        f'setsid sh -c "while sleep 0.01; do {FORGED.replace(chr(34), chr(92) + chr(34))}; done" >/dev/null 2>&1 &',
    ],
    ids=["files", "links", "no place for the verdict", "a job", "a job of its own session"],
)
def test_what_an_agent_does_in_the_verifiers_place_does_not_count(question, cheat):
    answers, rewards = play(question.task(), bash(cheat))
    assert "error" not in answers[0]
    assert rewards == {"outcome": 0.0}


@pytest.mark.parametrize(
    "script",
    ["exit 1", "echo nan > /logs/verifier/reward.txt", "mkdir /logs/verifier/reward.json", "sleep 60"],
    ids=["wrote nothing", "no number", "a folder", "too slow"],
)
def test_a_verifier_that_did_not_run_scores_nothing(question, tmp_path, script):
    settings = (question.folder / "task.toml").read_text().replace("timeout_sec = 600.0", "timeout_sec = 2.0")
    task = copied(question, tmp_path / "t", tests__test_sh=f"#!/bin/sh\n{script}\n", **{"task.toml": settings})
    assert play(task)[1] == {"outcome": None}


def test_several_rewards_keep_their_names(question, tmp_path):
    rewards = '{"reward": 0.5, "style": 1, "speed": 0.25}'
    task = copied(
        question, tmp_path / "t", tests__test_sh=f"#!/bin/sh\necho '{rewards}' > /logs/verifier/reward.json\n"
    )
    assert play(task)[1] == {"outcome": 0.5, "style": 1.0, "speed": 0.25}


@given(st.binary(max_size=40))
def test_no_reward_file_of_any_content_breaks_the_reader(content):
    for name in ("reward.json", "reward.txt"):
        outcome = read_rewards(name, content)["outcome"]
        assert outcome is None or isinstance(outcome, float)


@pytest.mark.parametrize("content", [b"9" * 400, b"[" * 100_000, b'{"a":' * 100_000], ids=["huge", "lists", "objects"])
def test_a_reward_file_made_to_break_the_reader_scores_nothing(content):
    assert read_rewards("reward.json", content) == {"outcome": None}


def test_a_build_that_fails_is_the_infrastructures_fault(greeting, tmp_path):
    task = copied(greeting, tmp_path / "t")
    (tmp_path / "t" / "environment" / "Dockerfile").write_text("FROM x\nWORKDIR /app\nRUN apt-get update && false\n")
    with pytest.raises(InfrastructureError, match="there is no network"):
        play(task)


@pytest.mark.parametrize(
    "settings",
    ["", '[environment]\nnetwork_mode = "no-network"\n[verifier]\nnetwork_mode = "public"\n'],
    ids=["as a default", "for its verifier alone"],
)
def test_a_task_that_is_promised_a_network_runs_only_where_that_was_said_to_be_well(question, tmp_path, settings):
    task = copied(question, tmp_path / "t", **{"task.toml": settings})
    with pytest.raises(HarborError, match="offline=True"):
        play(task)
    assert play(task, offline=True)[1] == {"outcome": 0.0}


def test_a_job_may_be_judged_where_that_is_asked_for(question, tmp_path):
    served = (
        "#!/bin/sh\nif [ -p /app/pipe ] && echo hi > /app/pipe; then\nuntil [ -s /app/heard ]; do sleep 0.1; done; fi\n"
    )
    task = copied(question, tmp_path / "t", tests__test_sh=f"{served}cat /app/heard > /logs/verifier/reward.txt\n")
    serve = bash("mkfifo pipe; (read word < pipe; echo 1 > heard) & disown")
    assert play(task, serve, keep_running=True)[1] == {"outcome": 1.0}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("Dockerfile", "FROM x\nCOPY none.txt /app/", r"none\.txt: not in"),
        ("Dockerfile", "FROM x\nCOPY ../../secret /app/", "not in"),
        ("Dockerfile", "FROM x\nCOPY names.txt /etc/names", "read-only"),
        ("Dockerfile", "FROM x AS y\nFROM z", "several stages"),
        ("docker-compose.yaml", "services: {}", "several containers"),
    ],
)
def test_an_environment_that_cannot_be_had_here_is_refused_by_name(greeting, tmp_path, name, text, reason):
    task = copied(greeting, tmp_path / "t", **{f"environment/{name}": text})
    with pytest.raises(RecipeError, match=reason):
        play(task)


def test_what_is_no_harbor_task_is_refused_with_a_reason(question, tmp_path):
    with pytest.raises(HarborError, match=r"has no task\.toml"):
        HarborTask.read(tmp_path)
    with pytest.raises(HarborError, match="not empty"):
        export_question(tool_tasks(1)[0], question.folder, "1")
    with pytest.raises(HarborError, match="must not be empty"):
        export_question(tool_tasks(1)[0], tmp_path / "new", " ")


def test_exported_files_lie_where_the_task_says(tmp_path):
    said = (Message(role="system", content="Be brief."), Message(role="user", content="Double it."))
    task = Task(
        id="x/y z",
        family="code",
        domain="code",
        difficulty=2,
        messages=said,
        environment="e",
        verifier="v",
        split="test",
    )
    harbor = export_task(
        task,
        tmp_path / "t",
        solve="#!/bin/sh\necho $(( $(cat in/n) * 2 )) > out\n",
        test='#!/bin/sh\n[ "$(cat /app/out)" = "$(cat /tests/right)" ] && echo 1 > /logs/verifier/reward.txt || '
        "echo 0 > /logs/verifier/reward.txt\n",
        files={"in/n": b"21"},
        test_files={"right": b"42"},
    )
    assert (harbor.name, harbor.instruction) == ("baleen/x-y-z", "Be brief.\n\nDouble it.\n")
    assert harbor.settings["metadata"]["baleen_id"] == "x/y z"
    assert play(harbor.task(), bash((harbor.folder / "solution/solve.sh").read_text()))[1] == {"outcome": 1.0}
