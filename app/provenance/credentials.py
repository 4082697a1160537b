"""Content Credentials (C2PA): the manifest in a file, and whether its signature holds.

The library is loaded for the first file that has a manifest. It fetches nothing: neither manifests
that are elsewhere, nor the state of a certificate, nor identities.
"""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from app.provenance.report import Report, manifest
from app.provenance.vocabulary import (
    AI_EDITED,
    AI_GENERATED,
    NOTHING,
    SOFTWARE,
    gravest,
    is_generator,
    printable,
    source_type,
)

_MOST_LISTED = 16
_MOST_LOOKED_AT = 1000  # ingredients of one manifest
_MOST_DEPTH = 64  # of ingredients of ingredients
_SETTINGS = {
    "version": 1,
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "core": {
        "allowed_network_hosts": [],  # none
        "allow_redirects": False,
        "decode_identity_assertions": False,  # it would ask hosts all the same
        "max_decompressed_manifest_size_in_mb": 8,
    },
}
_UNTRUSTED = "signingCredential.untrusted"  # said by `trusted`: the signature may hold all the same
_EXPIRED = "signingCredential.expired"
_METADATA = ("c2pa.metadata", "cawg.metadata", "stds.iptc")

Checker = Callable[[bytes, str], Report]
"""Gives what the manifest in a file of that MIME type says."""


def checker(trust_anchors: str) -> Checker:
    """Load the library.

    Args:
        trust_anchors: certificates (PEM) of authorities whose signers are trusted; none: empty.
    """
    import c2pa  # its library is 23 MB

    trust = {"trust": {"trust_anchors": trust_anchors}} if trust_anchors else {}
    context = c2pa.Context.from_dict(_SETTINGS | trust)

    def check(data: bytes, mime: str) -> Report:
        try:
            with c2pa.Reader(mime, io.BytesIO(data), context=context) as reader:
                store = json.loads(reader.json())
        except (c2pa.C2paError, ValueError, RecursionError):  # it is none that can be read
            return manifest("unverified")
        return report_of(store, asked_for_trust=bool(trust))

    return check


def report_of(store: Mapping[str, Any], *, asked_for_trust: bool) -> Report:
    """What a manifest store says, as the library tells it.

    Args:
        store: the library's JSON.
        asked_for_trust: whether there was a trust list.
    """
    manifests = _Manifests(_mapping(store.get("manifests")))
    active = manifests.get(store.get("active_manifest"))
    state = store.get("validation_state")
    if active is None or state not in ("Valid", "Trusted", "Invalid"):
        return manifest("unverified")
    signature = _mapping(active.get("signature_info"))
    parts = _mappings(active.get("ingredients"))[:_MOST_LISTED]
    failures = _failures(store.get("validation_results"))
    status = "invalid" if state == "Invalid" else "valid"
    if status == "invalid" and failures == [_EXPIRED]:
        status = "unverified"  # nothing was changed: nobody can say that it was signed in time
    is_judged = asked_for_trust and status == "valid"
    return {
        "status": status,
        "declares": manifests.declares(store["active_manifest"]),
        "signer": printable(signature.get("common_name")),
        "issuer": printable(signature.get("issuer")),
        "trusted": state == "Trusted" if is_judged else None,
        "signed_at": printable(signature.get("time")),
        "claim_generator": _claim_generator(active),
        "digital_source_type": _digital_source_type(active),
        "actions": [_action(action) for action in _actions(active)[:_MOST_LISTED]],
        "ingredients": [manifests.ingredient(part) for part in parts],
        "failures": failures[:_MOST_LISTED],
    }


class _Manifests:
    """Those of a file, by label: each is looked at once, however they refer to each other."""

    def __init__(self, manifests: Mapping[str, Any]) -> None:
        self._manifests = manifests
        self._declared: dict[str, str] = {}
        self._depth = 0

    def get(self, label: object) -> Mapping[str, Any] | None:
        """The manifest of a label."""
        found = self._manifests.get(label) if isinstance(label, str) else None
        return found if isinstance(found, Mapping) else None

    def declares(self, label: str) -> str:
        """What one declares, by its own actions and by what its image was made of."""
        one = self.get(label)
        if one is None or self._depth == _MOST_DEPTH:
            return NOTHING
        if label not in self._declared:
            self._declared[label] = NOTHING  # to itself
            self._depth += 1
            parts = map(self.ingredient, _mappings(one.get("ingredients"))[:_MOST_LOOKED_AT])
            self._declared[label] = gravest([_own(one), *map(_inherited, parts)])
            self._depth -= 1
        return self._declared[label]

    def ingredient(self, part: Mapping[str, Any]) -> Report:
        """An ingredient, as `IngredientOut` has it."""
        label = part.get("active_manifest")
        status, declares = "absent", NOTHING
        if isinstance(label, str) and self.get(label) is not None:
            # Older manifests list what was wrong when the ingredient was taken in.
            wrong = [str(one.get("code")) for one in _mappings(part.get("validation_status"))]
            wrong += _failures(part.get("validation_results"))
            status = "invalid" if any(code != _UNTRUSTED for code in wrong) else "valid"
            declares = self.declares(label)
        relationship = printable(part.get("relationship")) or "componentOf"
        return {"relationship": relationship, "status": status, "declares": declares}


def _own(one: Mapping[str, Any]) -> str:
    """What a manifest declares by its actions and its metadata."""
    said = [SOFTWARE, source_type(_metadata_source_type(one))[1]]
    for action in _actions(one):
        _, declares = source_type(action.get("digitalSourceType"))
        if declares not in (AI_GENERATED, AI_EDITED) and is_generator(_agent(action)):
            declares = AI_GENERATED
        # What a model adds to an image does not make all of it generated.
        if declares == AI_GENERATED and action.get("action") != "c2pa.created":
            declares = AI_EDITED
        said.append(declares)
    return gravest(said)


def _inherited(ingredient: Report) -> str:
    """What an ingredient says of what was made of it."""
    declares = str(ingredient["declares"])
    match ingredient["status"], ingredient["relationship"]:
        case "valid", "parentOf":
            return declares
        case "valid", "componentOf" if declares in (AI_GENERATED, AI_EDITED):
            return AI_EDITED
    return NOTHING


def _action(action: Mapping[str, Any]) -> Report:
    return {
        "action": printable(action.get("action")) or "",
        "digital_source_type": source_type(action.get("digitalSourceType"))[0],
        "software_agent": _agent(action),
    }


def _actions(one: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of the assertions on actions, whichever their version."""
    found: list[Mapping[str, Any]] = []
    for assertion in _mappings(one.get("assertions")):
        if str(assertion.get("label")).startswith("c2pa.actions"):
            found += _mappings(_mapping(assertion.get("data")).get("actions"))
    return found


def _agent(action: Mapping[str, Any]) -> str | None:
    agent = action.get("softwareAgent")
    return _named(agent) if isinstance(agent, Mapping) else printable(agent)


def _claim_generator(one: Mapping[str, Any]) -> str | None:
    infos = _mappings(one.get("claim_generator_info"))
    return _named(infos[0]) if infos else printable(one.get("claim_generator"))


def _named(software: Mapping[str, Any]) -> str | None:
    """Name and version as one."""
    name, version = (software.get(key) for key in ("name", "version"))
    return printable(f"{name} {version}" if isinstance(version, str) else name)


def _digital_source_type(one: Mapping[str, Any]) -> str | None:
    """That of the asset's beginning, else the first that there is."""
    actions = sorted(_actions(one), key=lambda action: action.get("action") != "c2pa.created")
    values = [action.get("digitalSourceType") for action in actions]
    found = (source_type(value)[0] for value in [*values, _metadata_source_type(one)])
    return next(filter(None, found), None)


def _metadata_source_type(one: Mapping[str, Any]) -> object:
    """IPTC's own property, where the manifest holds signed metadata."""
    for assertion in _mappings(one.get("assertions")):
        if str(assertion.get("label")).startswith(_METADATA):
            return _mapping(assertion.get("data")).get("Iptc4xmpExt:DigitalSourceType")
    return None


def _failures(results: object) -> list[str]:
    """Codes of what failed in the active manifest or its ingredients, each once."""
    found = _mapping(results)
    checks = [_mapping(found.get("activeManifest"))]
    checks += [
        _mapping(delta.get("validationDeltas"))
        for delta in _mappings(found.get("ingredientDeltas"))
    ]
    codes = (
        printable(one.get("code")) for check in checks for one in _mappings(check.get("failure"))
    )
    return [code for code in dict.fromkeys(codes) if code and code != _UNTRUSTED]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
