"""Content Credentials: signatures hold or not, trust is the operator's, and nothing is fetched."""

import io
import json
import socket
from typing import Any

import c2pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.provenance.containers import blobs
from app.provenance.credentials import Checker, checker, report_of
from app.schemas import ContentCredentialsOut
from benchmarks.signing import SIGNER, authority, created, signed, stranger
from tests.app.provenance.files import with_metadata
from tests.images import encoded, jpeg, photo

MIME = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
}


@pytest.fixture(scope="module")
def check() -> Checker:
    return checker("")


def read(check: Checker, data: bytes) -> ContentCredentialsOut:
    found = blobs(data)
    assert found.c2pa
    return ContentCredentialsOut.model_validate(check(data, found.mime))


def tampered(data: bytes) -> bytes:
    """Another pixel than what was signed."""
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


@pytest.mark.parametrize("codec", MIME)
def test_a_signature_is_checked_in_every_format(check: Checker, codec: str) -> None:
    found = read(check, signed(with_metadata(codec), MIME[codec]))
    assert (found.status, found.declares) == ("valid", "ai_generated")
    assert found.signer == SIGNER
    assert found.issuer == f"Organisation of {SIGNER}"
    assert found.digital_source_type == "trainedAlgorithmicMedia"
    assert found.claim_generator == "nsnet benchmarks 1"
    assert found.failures == []
    assert found.signed_at is None  # no timestamp authority took part
    assert [action.action for action in found.actions] == ["c2pa.created"]


def test_trust_is_a_matter_of_the_operators_list(check: Checker) -> None:
    data = signed(jpeg(), "image/jpeg")
    assert read(check, data).trusted is None
    assert read(checker(authority()), data).trusted is True


def test_a_signer_of_another_authority_is_not_trusted(check: Checker) -> None:
    found = read(checker(stranger()), signed(jpeg(), "image/jpeg"))
    assert (found.status, found.trusted) == ("valid", False)


def test_what_was_changed_after_it_was_signed_is_invalid(check: Checker) -> None:
    for trusting in (check, checker(authority())):
        found = read(trusting, tampered(signed(jpeg(), "image/jpeg")))
        assert found.status == "invalid"
        assert found.failures == ["assertion.dataHash.mismatch"]
        assert not found.trusted


def test_a_claim_that_was_changed_is_invalid_or_unreadable(check: Checker) -> None:
    data = signed(jpeg(), "image/jpeg")
    changed = data.replace(b"trainedAlgorithmicMedia", b"digitalCapture/////////")
    assert changed != data
    found = read(check, changed)
    assert found.status == "invalid"
    assert found.failures


def test_a_broken_manifest_is_not_verified(check: Checker) -> None:
    data = signed(jpeg(), "image/jpeg")
    at = data.index(b"c2pa\0") + 20
    found = read(check, data[:at] + bytes(400) + data[at + 400 :])
    assert found.status in ("unverified", "invalid")
    assert found.declares in ("nothing", "software")


@pytest.mark.parametrize(
    ("actions", "declares"),
    [
        ([created("digitalCapture")], "camera"),
        ([created("digitalCreation")], "software"),
        ([created("compositeWithTrainedAlgorithmicMedia")], "ai_edited"),
        ([created("digitalCapture"), {"action": "c2pa.cropped"}], "camera"),
        (
            [
                created("digitalCapture"),
                created("trainedAlgorithmicMedia") | {"action": "c2pa.edited"},
            ],
            "ai_edited",
        ),
        ([created(softwareAgent="Adobe Firefly")], "ai_generated"),
        (
            [
                created("digitalCapture"),
                {"action": "c2pa.edited", "softwareAgent": {"name": "Adobe Firefly"}},
            ],
            "ai_edited",
        ),
    ],
)
def test_actions_declare(check: Checker, actions: list[dict[str, Any]], declares: str) -> None:
    assert read(check, signed(jpeg(), "image/jpeg", actions)).declares == declares


def test_ingredients_are_told_and_count_by_what_was_made_of_them(check: Checker) -> None:
    image, generated = jpeg(), signed(jpeg(), "image/jpeg")
    data = signed(
        image,
        "image/jpeg",
        [created("digitalCapture")],
        [("componentOf", generated), ("componentOf", image), ("inputTo", tampered(generated))],
    )
    found = read(check, data)
    assert [(one.relationship, one.status, one.declares) for one in found.ingredients] == [
        ("componentOf", "valid", "ai_generated"),
        ("componentOf", "absent", "nothing"),
        ("inputTo", "invalid", "ai_generated"),
    ]
    assert found.declares == "ai_edited"


def test_what_was_opened_hands_on_what_it_declares() -> None:
    store = _store(
        parent=[created()], active=[{"action": "c2pa.opened"}, {"action": "c2pa.cropped"}]
    )
    assert report_of(store, asked_for_trust=False)["declares"] == "ai_generated"


def test_manifests_that_refer_to_each_other_end() -> None:
    """Each is looked at once: of sixteen that all name all, there are more ways than time."""
    parts = [{"relationship": "parentOf", "active_manifest": str(label)} for label in range(200)]
    store = {
        "active_manifest": "0",
        "validation_state": "Valid",
        "manifests": {str(label): {"ingredients": parts} for label in range(200)},
    }
    found = ContentCredentialsOut.model_validate(report_of(store, asked_for_trust=True))
    assert found.declares == "software"
    assert len(found.ingredients) == 16


def test_lists_and_values_are_bounded() -> None:
    long = "\u706f" * 1000
    store = _store(
        parent=[], active=[{"action": long, "digitalSourceType": long, "softwareAgent": long}] * 99
    )
    store["validation_results"] = {
        "activeManifest": {"failure": [{"code": f"{long[:50]}{number}"} for number in range(99)]}
    }
    found = ContentCredentialsOut.model_validate(report_of(store, asked_for_trust=False))
    assert len(found.actions) == len(found.failures) == 16
    assert len(found.actions[0].action) == 100


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["active_manifest", "manifests", "a", "ingredients", "assertions", "label", "data",
                 "actions", "action", "digitalSourceType", "softwareAgent", "name", "version",
                 "signature_info", "claim_generator_info", "validation_results", "activeManifest",
                 "failure", "code", "relationship", "validation_status", "ingredientDeltas"]
            ),
            inner | st.sampled_from(["a", "c2pa.actions"]),
            max_size=6,
        )
    ),
    max_leaves=40,
)  # fmt: skip


@given(manifest=_JSON, rest=_JSON)
def test_whatever_the_library_says_is_told_or_not(manifest: Any, rest: Any) -> None:
    store = {"active_manifest": "a", "validation_state": "Valid", "manifests": {"a": manifest}}
    for one in (store, store | (rest if isinstance(rest, dict) else {"manifests": rest})):
        ContentCredentialsOut.model_validate(report_of(one, asked_for_trust=False))


@pytest.mark.parametrize("embed", [True, False])
def test_nothing_is_fetched(check: Checker, embed: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/manifest.c2pa"
        data = signed(jpeg(), "image/jpeg", remote_url=url, embed=embed)
        assert url.encode() in data
        found = check(data, "image/jpeg")
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert found["status"] == ("valid" if embed else "unverified")


def test_the_library_would_fetch_if_it_were_not_told_otherwise() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/manifest.c2pa"
        data = signed(jpeg(), "image/jpeg", remote_url=url, embed=False)
        listener.close()  # it is refused, and says so
        with pytest.raises(c2pa.C2paError, match="remote"):
            c2pa.Reader("image/jpeg", io.BytesIO(data))


def test_what_is_no_image_is_not_verified(check: Checker) -> None:
    for data in (b"", b"nonsense", encoded(photo(), "BMP"), jpeg()):
        assert check(data, "image/jpeg")["status"] == "unverified"


def _store(*, parent: list[dict[str, Any]], active: list[dict[str, Any]]) -> dict[str, Any]:
    """As the library tells it: an image that was opened."""

    def asserted(actions: list[dict[str, Any]]) -> dict[str, Any]:
        return {"assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}]}

    part = {"relationship": "parentOf", "active_manifest": "parent"}
    return {
        "active_manifest": "active",
        "validation_state": "Valid",
        "manifests": {
            "active": asserted(active) | {"ingredients": [part]},
            "parent": asserted(parent),
        },
    }


@pytest.mark.parametrize(
    ("failures", "status"),
    [
        (["signingCredential.expired"], "unverified"),
        (["signingCredential.expired", "signingCredential.untrusted"], "unverified"),
        (["signingCredential.expired", "assertion.dataHash.mismatch"], "invalid"),
        (["signingCredential.revoked"], "invalid"),
    ],
)
def test_a_certificate_that_ran_out_is_no_sign_of_tampering(
    failures: list[str], status: str
) -> None:
    """And of what is not valid, nobody says whether its signer is trusted."""
    with c2pa.Reader("image/jpeg", io.BytesIO(signed(jpeg(), "image/jpeg"))) as reader:
        store = json.loads(reader.json())
    store["validation_state"] = "Invalid"
    store["validation_results"] = {"activeManifest": {"failure": [{"code": c} for c in failures]}}
    found = ContentCredentialsOut.model_validate(report_of(store, asked_for_trust=True))
    assert (found.status, found.trusted) == (status, None)
    assert found.failures == [code for code in failures if code != "signingCredential.untrusted"]
