"""A prediction as a DICOM Structured Report, by the measurement report template (TID 1500 of PS3.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chestx_cli.inference.pacs.sources import (
    CHARACTER_SET,
    MANUFACTURER,
    MODEL,
    REPORT_SERIES,
    RESEARCH_ONLY,
    SERIES_DESCRIPTION,
    SOFTWARE,
    Finding,
    instance_number,
    series_uid,
)

if TYPE_CHECKING:
    from pydicom import Dataset

# A private coding scheme: no standard one codes the probability of a user-defined class.
_SCHEME = "99CHESTX"
# Of a code's meaning (LO of PS3.5); a longer text is in a content item of its own.
_MAX_MEANING = 64


def report_of(source: Dataset, finding: Finding) -> Dataset:
    """Return the report: probability, threshold and decision, the model, and the image that it describes.

    Its flags are complete, preliminary and unverified.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    def number(code: str, meaning: str, value: float) -> Any:
        return sr.Measurement(name=_coded(code, meaning), value=value, unit=codes.UCUM.NoUnits)

    def statement(code: str, meaning: str, value: tuple[str, str]) -> Any:
        return sr.QualitativeEvaluation(name=_coded(code, meaning), value=_coded(*value))

    decision = "POSITIVE" if finding.decision == finding.positive else "NEGATIVE"
    statements = [
        statement("USE", "Intended use", ("RESEARCH", RESEARCH_ONLY)),
        statement("DECISION", "Decision at the threshold", (decision, finding.decision)),
    ]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=finding.uid(source, "finding"), identifier="chestx prediction"),
        algorithm_id=sr.AlgorithmIdentification(
            name=f"{MODEL} {finding.variant}",
            version=finding.model_sha256,
            parameters=[RESEARCH_ONLY],
            manufacturer=MANUFACTURER,
        ),
        measurements=[
            number("PROBABILITY", f"Probability of {finding.positive}", finding.probability),
            number("THRESHOLD", f"Threshold from which on {finding.positive} is called", finding.threshold),
        ],
        qualitative_evaluations=statements,
        source_images=[
            sr.SourceImageForMeasurementGroup(
                referenced_sop_class_uid=source.SOPClassUID, referenced_sop_instance_uid=source.SOPInstanceUID
            )
        ],
    )
    # The template may be extended by them, and does not limit their length.
    texts = [("DOUBT", "Reason not to trust the prediction", doubt) for doubt in finding.doubts]
    texts += [("POSITIVE-CLASS", "Positive class", finding.positive), ("CLASS", "Class called", finding.decision)]
    group[0].ContentSequence.extend(
        sr.TextContentItem(name=_coded(code, meaning), value=text, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        for code, meaning, text in texts
    )
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=series_uid(source, finding.model_sha256, "observer"),
            name=f"{MODEL} {finding.variant}",
            manufacturer_name=MANUFACTURER,
            model_name=SOFTWARE,
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=sr.CodedConcept(value="399208008", scheme_designator="SCT", meaning="Plain chest X-ray"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    report: Dataset = sr.EnhancedSR(
        evidence=[source],
        content=content,
        series_instance_uid=series_uid(source, finding.model_sha256, "reports"),
        series_number=REPORT_SERIES,
        sop_instance_uid=finding.uid(source, "report"),
        instance_number=instance_number(source),
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=SOFTWARE,
        series_description=SERIES_DESCRIPTION,
        is_complete=True,
        specific_character_set=CHARACTER_SET,
    )
    return report


def _coded(code: str, meaning: str) -> Any:
    from highdicom.sr import CodedConcept

    # A backslash would divide it into two values.
    meaning = meaning.replace("\\", "/")
    cut = meaning if len(meaning) <= _MAX_MEANING else f"{meaning[: _MAX_MEANING - 1]}…"
    return CodedConcept(value=code, scheme_designator=_SCHEME, meaning=cut)
