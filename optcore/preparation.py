"""What a stage reads besides a checkpoint: further models, a teacher, windows, and what the teacher says of them."""

from optcore.conductor import Conductor, Folder
from optcore.frozen import digest_of
from optcore.plan import data_stage, features_stage, plan_stage, teacher_stage
from optcore.stage import DataWork, DraftPlanWork, FeaturesWork, TeacherWork
from optcore.techniques.distilling import Distilling
from optcore.techniques.draft import Draft
from optcore.techniques.losses import top_k_temperature
from optcore.techniques.merge import Merge
from optcore.techniques.training import Training

_GIVEN = ("text", "chat", "random")
"""Kinds of data that no model writes."""


def prepare(conductor: Conductor, name: str, place: str, technique: Training, dense: Folder) -> None:
    """Bring all of it into the conductor's inputs, running the stages that make it.

    `place` is where the technique stands in the recipe, a JSON Pointer; `dense` the chain's weights in high precision.
    """
    if isinstance(technique, Draft):
        conductor.stage(plan_stage(name), DraftPlanWork(technique=technique))  # refused before any text is written
    _bring(conductor, place, technique, dense)
    _make_windows(conductor, name, place, technique, dense)
    if isinstance(technique, Distilling) and technique.teacher_top_k:
        _ask_teacher(conductor, name, technique, technique.teacher_top_k)
    if isinstance(technique, Draft) and technique.features == "kept":
        _keep_features(conductor, name, technique)


def _bring(conductor: Conductor, place: str, technique: Training, dense: Folder) -> None:
    """The teacher, the student and the text that were fetched for it."""
    fetched = conductor.records["0-fetch"].results
    if text := fetched["texts"].get(f"{place}/data"):
        conductor.move(text_files=tuple(text["files"]), text_digest=text["digest"])
    elif technique.data.is_text:
        conductor.move(text_files=conductor.inputs.data_files)
    if student := fetched["models"].get(f"{place}/student"):
        conductor.enter(Folder(student["path"], student["digest"]))
    if isinstance(technique, Distilling):
        named = fetched["models"].get(f"{place}/teacher")
        source = Folder(conductor.inputs.source, conductor.inputs.source_digest)
        teacher = source if technique.teacher == "source" else dense
        teacher = Folder(named["path"], named["digest"]) if named else teacher
        conductor.move(teacher=teacher.path, teacher_digest=teacher.digest)


def bring_models(conductor: Conductor, place: str, technique: Merge | Draft) -> None:
    """The models that were fetched for a technique that reads their weights: to merge them, or to begin with one."""
    fetched = conductor.records["0-fetch"].results
    found = [fetched["models"][f"{place}/{name}"] for name in technique.models]
    found += [fetched["drafts"][f"{place}/{name}"] for name in technique.drafts]
    if not found:
        return
    digests = [model["digest"] for model in found]
    conductor.move(models=tuple(model["path"] for model in found), models_digest=digest_of(digests))


def _make_windows(conductor: Conductor, name: str, place: str, technique: Training, dense: Folder) -> None:
    """Windows depend on the tokenizer, and on a model only where it writes or labels them: chains share them."""
    work = DataWork(
        data=technique.prepared_data,
        sequence_length=_sequence_length(conductor, name, place, technique),
        training=technique.windows,
        validation=technique.held_out,
    )
    model, teacher = _read(conductor, technique, dense)
    with conductor.aside():
        conductor.enter(model)
        conductor.move(teacher=teacher.path, teacher_digest=teacher.digest, models=(), models_digest="")
        conductor.stage(data_stage(name), work)
    made = conductor.left_by(data_stage(name))
    conductor.move(windows=made.path, windows_digest=made.digest)


def _sequence_length(conductor: Conductor, name: str, place: str, technique: Training) -> int:
    """Tokens a window: no more than the source, its teacher, and a student that the chain goes on with can hold."""
    fetched = conductor.records["0-fetch"].results
    own = (f"{place}/teacher", f"{place}/start")
    others = [model for at, model in fetched["models"].items() if at.endswith("/student") or at in own]
    longest: int = min(model["longest_sequence"] for model in (fetched, *others))
    if longest < technique.sequence_length:
        conductor.notice(data_stage(name), f"sequence_length cut to {longest}, the most that the models hold")
    return min(longest, technique.sequence_length)


def _read(conductor: Conductor, technique: Training, dense: Folder) -> tuple[Folder, Folder]:
    """The model and the teacher that windows depend on; no folder where that is none.

    Labels are numbered as the model that trains does, and as its teacher where that model has no head yet.
    """
    inputs = conductor.inputs
    if isinstance(technique, Draft) and technique.data.kind not in _GIVEN:
        return Folder(inputs.source, inputs.source_digest), conductor.checkpoint  # it learns what the target says
    source, teacher = Folder(inputs.source, inputs.source_digest), Folder(inputs.teacher, inputs.teacher_digest)
    match technique.data.kind:
        case "labelled" if "quantized" in technique.needs:
            return dense, Folder()
        case "labelled":
            return conductor.checkpoint, teacher
        case "generated" | "answers":
            return source, teacher if teacher.path else dense
    return source, Folder()


def _ask_teacher(conductor: Conductor, name: str, technique: Distilling, top_k: int) -> None:
    """Answers depend on the teacher and the windows alone: jobs with other students share them."""
    work = TeacherWork(top_k=top_k, temperature=top_k_temperature(technique.losses))
    with conductor.aside():
        conductor.enter(Folder(conductor.inputs.source, conductor.inputs.source_digest))
        conductor.stage(teacher_stage(name), work)
    answers = conductor.left_by(teacher_stage(name))
    conductor.move(answers=answers.path, answers_digest=answers.digest, teacher="", teacher_digest="")


def _keep_features(conductor: Conductor, name: str, technique: Draft) -> None:
    """Features depend on the target, the windows and the taps: drafts that are trained otherwise share them."""
    conductor.stage(features_stage(name), FeaturesWork(technique=technique.features_alone))
    features = conductor.left_by(features_stage(name))
    conductor.move(features=features.path, features_digest=features.digest)
