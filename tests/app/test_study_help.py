"""The help of `audiolm study` names every full recipe, and files that are there."""

import re

from audiolm_utils.app.study_help import STUDY_HELP
from audiolm_utils.study.full_recipes import FULL_RECIPES


def test_it_names_the_full_recipes_and_no_others():
    listed = STUDY_HELP.split("\nThey train")[0]
    assert re.findall(r"full-[\w.-]*\w", listed) == [recipe.name for recipe in FULL_RECIPES.values()]


def test_its_commands_name_files_and_headings_that_are_there(repository):
    assert (repository / re.search(r"configs/\S+", STUDY_HELP)[0]).is_file()
    assert {path.name for path in (repository / "configs" / "accelerate").iterdir()} == {"ddp.yaml", "fsdp.yaml"}
    assert all(name in STUDY_HELP for name in ("ddp.yaml", "fsdp.yaml"))
    assert "\n## Full recipes\n" in (repository / "README.md").read_text(encoding="utf-8")
