"""Reading a Dockerfile's recipe: what is followed, and what is refused by name."""

import pytest

from baleen.agent.adapters.dockerfile import Copy, RecipeError, Run, read_recipe


def test_folders_variables_copies_and_commands_are_read_in_order():
    recipe = read_recipe(
        """# a comment
FROM ubuntu:24.04
ARG VERSION=3
ENV HOME_OF_IT=/srv/it LEVEL="very high"
ENV OLD form of it
WORKDIR ${HOME_OF_IT}
WORKDIR inner/../deep
COPY --chown=root a.txt b.txt ./
COPY ["one file", "/data/two"]
ADD tree /data/tree/
RUN --mount=type=cache,target=/c make \\
    # in between
    VERSION=$VERSION
RUN ["echo", "a b"]
USER nobody
EXPOSE 80
"""
    )
    assert recipe.workdir == "/srv/it/deep"
    assert recipe.folders == ("/srv/it", "/srv/it/deep")
    assert recipe.variables == {"HOME_OF_IT": "/srv/it", "LEVEL": "very high", "OLD": "form of it"}
    assert recipe.steps[:3] == (
        Copy(("a.txt", "b.txt"), "/srv/it/deep/"),
        Copy(("one file",), "/data/two"),
        Copy(("tree",), "/data/tree/"),
    )
    made, said = recipe.steps[3:]
    assert isinstance(made, Run)
    assert " ".join(made.command.split()) == "make VERSION=$VERSION"
    assert (made.folder, made.variables["VERSION"]) == ("/srv/it/deep", "3")
    assert said.command == "echo 'a b'"


@pytest.mark.parametrize("command", ["[ -d /app ] || mkdir /app", "[[ -d /app ]]", "[1]"])
def test_a_bracket_that_opens_no_list_of_words_begins_a_shell_command(command):
    assert read_recipe(f"FROM a\nRUN {command}").steps == (Run(command, "/", {}),)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("WORKDIR /app", "no FROM"),
        ("FROM a AS b\nFROM c", "several stages"),
        ("FROM a\nCOPY --from=b /x /y", "another image"),
        ("FROM a\nADD https://host/x /y", "no network"),
        ("FROM a\nRUN <<EOF\necho\nEOF", "put it in a file"),
        ("FROM a\nCOPY x", "source and a target"),
        ("FROM a\nCOPY", "source and a target"),
        ("FROM a\nENV", "ENV needs a name"),
        ('FROM a\nENV A="b', "No closing quotation"),
        ('FROM a\nSHELL ["sh"]', "SHELL"),
        ("FROM a\nFETCH x", "unknown instruction FETCH"),
        ("FROM a\nRUN x \\", "middle of a line"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(lines, reason):
    with pytest.raises(RecipeError, match=reason):
        read_recipe(lines)
