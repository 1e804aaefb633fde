"""The pilot as one validated value. Sections are named like the stages that read them;
``prompts`` and ``tasks`` are read by ``measure_ab``, ``study`` by ``workbench study``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from workbench.pilot.renamed import with_todays_names
from workbench.pilot.sections.base import Section, Words
from workbench.pilot.sections.data import Data
from workbench.pilot.sections.deploy_rollback import DeployRollback
from workbench.pilot.sections.hybrid_plan import HybridPlan
from workbench.pilot.sections.measure_ab import USUAL_ARMS, MeasureAb
from workbench.pilot.sections.model import Model
from workbench.pilot.sections.profile_load import ProfileLoad
from workbench.pilot.sections.prompts import Prompts
from workbench.pilot.sections.readiness import Readiness
from workbench.pilot.sections.report import Report
from workbench.pilot.sections.study import Study
from workbench.pilot.sections.tasks import Task
from workbench.pilot.sections.train import Train


class Pilot(Section):
    """Everything a pilot decides before it runs."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="folder below runs/")
    question: Words = Field(
        min_length=1,
        description="what the pilot answers, one sentence; or in both languages: "
        "{en: ..., ru: ...}",
    )
    tags: list[str] = Field([], description="words to find its runs by; they decide nothing")
    seed: int = Field(1234, ge=0, description="of weights, batches, splits and declared load")
    readiness: Readiness = Readiness()
    profile_load: ProfileLoad = ProfileLoad()
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    measure_ab: MeasureAb = MeasureAb()
    prompts: Prompts = Prompts()
    tasks: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], Task] = Field(
        {}, description="files of questions with known answers, by names of your choice"
    )
    hybrid_plan: HybridPlan = HybridPlan()
    deploy_rollback: DeployRollback = DeployRollback()
    report: Report = Report()
    study: Study = Study()

    @model_validator(mode="before")
    @classmethod
    def by_todays_names(cls, values: Any) -> Any:
        return with_todays_names(values) if isinstance(values, dict) else values

    @model_validator(mode="before")
    @classmethod
    def with_todays_model(cls, values: Any) -> Any:
        """A trained checkpoint is compared with what it was before, unless the pilot says which
        arms there are: a baseline that is fine-tuned too hides the gap to today's model."""
        if not isinstance(values, dict) or not _is_trained_from_a_checkpoint(values.get("model")):
            return values
        section = values.get("measure_ab") or {}
        if not isinstance(section, dict) or "arms" in section:
            return values
        arms = dict.fromkeys([*USUAL_ARMS, "checkpoint"])
        return {**values, "measure_ab": {**section, "arms": arms}}


def _is_trained_from_a_checkpoint(model: Any) -> bool:
    fields = model if isinstance(model, dict) else vars(model) if model is not None else {}
    return bool(fields.get("checkpoint")) and not fields.get("ternary")
