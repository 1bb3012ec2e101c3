"""Every route, who may call it, and what the audit log calls that; all else is refused.

One table for all doors: a route that is not in it does not exist for anybody. Names of path
parameters do not matter; two rows of one verb never match the same path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from contourcast.service.problems import ForbiddenError, UnauthorizedError

if TYPE_CHECKING:
    from contourcast.service.access.caller import Caller


class Role(StrEnum):
    """What somebody is here for; nobody inherits anything."""

    UPLOADER = "uploader"  # sends images, asks for contours, sees what came of its own
    VIEWER = "viewer"  # looks at everything of patients
    REVIEWER = "reviewer"  # looks, edits, answers, signs
    ADMIN = "admin"  # keys, accounts, settings, jobs, deliveries; no pictures
    AUDITOR = "auditor"  # the audit log
    MACHINE = "machine"  # an archive's hints; whoever reads the metrics
    INTERNAL = "internal"  # this machine, while there is no credential yet


# Roles that keys, accounts and issuers can give.
GIVEN: Final = frozenset(Role) - {Role.INTERNAL}


class What(StrEnum):
    """What happened, in the audit log's words."""

    START = "start"
    LOGIN = "login"
    LOGOUT = "logout"
    QUERY = "query"
    READ = "read"
    CREATE = "create"
    UPDATE = "update"
    EXPORT = "export"
    IMPORT = "import"
    SIGN = "sign"
    SETTING = "setting"
    DELETE = "delete"
    REFUSAL = "refusal"
    AUDIT = "audit"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who may call a route.

    Attributes:
        roles: Any of them is enough.
        own: Roles that may as well, for what they themselves asked for; the route sees to that.
        person: Only a person whose credential is theirs alone: no key, no certificate.
        public: Needs nobody; nothing of patients is there.
        what: How the audit log calls it; none where nothing of patients or settings is touched.
    """

    roles: frozenset[Role] = frozenset()
    own: frozenset[Role] = frozenset()
    person: bool = False
    public: bool = False
    what: What | None = None


def _for(*roles: Role, what: What | None = None, own: Role | None = None) -> Rule:
    return Rule(
        roles=frozenset(roles) | {Role.INTERNAL},
        own=frozenset() if own is None else frozenset({own}),
        what=what,
    )


def _person(role: Role, what: What) -> Rule:
    return Rule(roles=frozenset({role}), person=True, what=what)


_PUBLIC: Final = Rule(public=True)
_UP, _VIEW, _REVIEW, _ADMIN = Role.UPLOADER, Role.VIEWER, Role.REVIEWER, Role.ADMIN
_KNOWN: Final = Rule(roles=frozenset(Role))
_SENDS: Final = _for(_UP, what=What.IMPORT)
_READS: Final = _for(_VIEW, _REVIEW, what=What.READ)
_FINDS: Final = _for(_VIEW, _REVIEW, what=What.QUERY)
_EXPORTS: Final = _for(_VIEW, _REVIEW, what=What.EXPORT)
_EDITS: Final = _for(_REVIEW, what=What.UPDATE)
_RESULTS: Final = _for(_VIEW, _REVIEW, what=What.READ, own=_UP)
_OPERATES: Final = _for(_VIEW, _REVIEW, _ADMIN, what=What.QUERY)
_SETS: Final = _for(_ADMIN, what=What.SETTING)

_PROPAGATION: Final = "/v1/propagations/{id}"
_STUDY: Final = "/dicom-web/studies/{study}"
_SERIES: Final = f"{_STUDY}/series/{{series}}"
_INSTANCE: Final = f"{_SERIES}/instances/{{instance}}"

TABLE: Final[dict[str, Rule]] = {
    # What comes in
    "POST /v1/instances": _SENDS,
    "POST /dicom-web/studies": _SENDS,
    f"POST {_STUDY}": _SENDS,
    "POST /v1/orthanc/events": _for(Role.MACHINE, what=None),
    "PUT /v1/series/{uid}/completion": _for(_UP, Role.MACHINE, what=What.UPDATE),
    "PUT /v1/series/{uid}/dismissal": _EDITS,
    # What is here
    "GET /v1/series": _FINDS,
    "GET /v1/series/{uid}": _for(_VIEW, _REVIEW, _UP, what=What.READ),
    "GET /v1/courses": _FINDS,
    "GET /v1/courses/{id}": _READS,
    "PATCH /v1/courses/{id}": _EDITS,
    "GET /v1/worklist": _FINDS,
    "GET /v1/volumes/{digest}/slices": _READS,
    # What was asked for
    "POST /v1/propagations": _for(_UP, _REVIEW, what=What.CREATE),
    "GET /v1/propagations": _for(_VIEW, _REVIEW, _ADMIN, what=What.QUERY, own=_UP),
    f"GET {_PROPAGATION}": _for(_VIEW, _REVIEW, _ADMIN, what=What.READ, own=_UP),
    f"DELETE {_PROPAGATION}": _for(_REVIEW, _ADMIN, what=What.DELETE, own=_UP),
    f"POST {_PROPAGATION}/retry": _for(_REVIEW, _ADMIN, what=What.CREATE, own=_UP),
    f"GET {_PROPAGATION}/events": _for(_VIEW, _REVIEW, _ADMIN, what=What.READ, own=_UP),
    f"GET {_PROPAGATION}/structure-set": _RESULTS,
    f"GET {_PROPAGATION}/registration": _RESULTS,
    f"GET {_PROPAGATION}/report": _RESULTS,
    f"GET {_PROPAGATION}/pictures/{{name}}": _RESULTS,
    # Review
    f"GET {_PROPAGATION}/view": _READS,
    f"GET {_PROPAGATION}/contours": _READS,
    f"POST {_PROPAGATION}/adjusted": _for(_REVIEW, what=What.READ),
    f"POST {_PROPAGATION}/again": _for(_REVIEW, what=What.CREATE),
    # said every few seconds, and of nobody's patient
    f"POST {_PROPAGATION}/presence": _for(_VIEW, _REVIEW),
    "GET /v1/courses/{id}/history": _READS,
    "GET /v1/statistics/editing": _OPERATES,
    f"GET {_PROPAGATION}/draft": _for(_REVIEW, what=What.READ),
    f"PUT {_PROPAGATION}/draft": _EDITS,
    f"DELETE {_PROPAGATION}/draft": _EDITS,
    f"GET {_PROPAGATION}/reviews": _READS,
    f"POST {_PROPAGATION}/reviews": _person(_REVIEW, What.SIGN),
    # Cohorts
    "GET /v1/cohorts": _OPERATES,
    "GET /v1/cohorts/{id}": _OPERATES,
    "GET /v1/cohorts/{id}/report": _for(_VIEW, _REVIEW, what=What.EXPORT),
    # Where it goes
    "GET /v1/destinations": _OPERATES,
    "GET /v1/deliveries": _OPERATES,
    "GET /v1/deliveries/{id}": _OPERATES,
    "POST /v1/deliveries/{id}/resend": _for(_REVIEW, _ADMIN, what=What.EXPORT),
    "GET /v1/notices": _for(_VIEW, _REVIEW, _ADMIN, what=What.QUERY),
    # DICOMweb (PS3.18 §10.3 … §10.6)
    "GET /dicom-web/studies": _FINDS,
    "GET /dicom-web/series": _FINDS,
    "GET /dicom-web/instances": _FINDS,
    f"GET {_STUDY}/series": _FINDS,
    f"GET {_STUDY}/instances": _FINDS,
    f"GET {_SERIES}/instances": _FINDS,
    f"GET {_STUDY}": _EXPORTS,
    f"GET {_STUDY}/metadata": _READS,
    f"GET {_SERIES}": _EXPORTS,
    f"GET {_SERIES}/metadata": _READS,
    f"GET {_INSTANCE}": _EXPORTS,
    f"GET {_INSTANCE}/metadata": _READS,
    # What there is
    "GET /v1/methods": _KNOWN,
    "GET /v1/models": _KNOWN,
    "GET /v1/rules": _for(_ADMIN, _REVIEW),
    "GET /v1/settings": _for(_ADMIN),
    # Who may
    "GET /v1/session": _KNOWN,
    "POST /v1/session": Rule(public=True, what=What.LOGIN),
    "DELETE /v1/session": Rule(roles=frozenset(Role), what=What.LOGOUT),
    "POST /v1/session/proof": Rule(roles=GIVEN, person=True, what=What.LOGIN),
    "GET /v1/session/ways": _PUBLIC,
    "GET /v1/session/oidc": _PUBLIC,
    "GET /v1/session/oidc/callback": Rule(public=True, what=What.LOGIN),
    "GET /v1/keys": _for(_ADMIN),
    "POST /v1/keys": _SETS,
    "DELETE /v1/keys/{id}": _SETS,
    "GET /v1/accounts": _for(_ADMIN),
    # else a key could make the person who signs
    "POST /v1/accounts": _person(_ADMIN, What.SETTING),
    "PATCH /v1/accounts/{name}": _person(_ADMIN, What.SETTING),
    "GET /v1/audit": _for(Role.AUDITOR, what=What.AUDIT),
    # The review page's own files
    "GET /": _PUBLIC,
    "GET /review": _PUBLIC,
    "GET /review/": _PUBLIC,
    "GET /review/assets/{name}": _PUBLIC,
    # The service itself
    "GET /docs": _KNOWN,
    "GET /openapi.json": _KNOWN,
    "GET /problems/{code}": _PUBLIC,
    "GET /health/live": _PUBLIC,
    "GET /health/ready": _PUBLIC,
    "GET /metrics": _for(_ADMIN, Role.AUDITOR, Role.MACHINE),
}


def rule_of(method: str, template: str) -> Rule | None:
    """The rule of a route; a HEAD is a GET.

    Args:
        method: Such as ``GET``.
        template: Path with parameters in braces, as in the OpenAPI document.
    """
    verb = "GET" if method.upper() == "HEAD" else method.upper()
    return _BY_SHAPE.get(f"{verb} {_shape(template)}")


def allowed(caller: Caller | None, method: str, template: str) -> None:
    """Lets a caller through, or does not.

    Raises:
        ForbiddenError: This caller may not call this route, or nobody may.
        UnauthorizedError: Somebody might, but it is not known who asks.
    """
    rule = rule_of(method, template)
    if rule is None:
        raise ForbiddenError("nobody may do that here", remedy="see /docs for what there is")
    if rule.public:
        return
    if caller is None:
        raise UnauthorizedError(
            "it is not known who asks", remedy="send a key as Authorization: Bearer, or sign in"
        )
    if not caller.roles & (rule.roles | rule.own):
        needed = ", ".join(sorted((rule.roles | rule.own) & GIVEN))
        raise ForbiddenError(
            "that needs another role", remedy=f"ask whoever runs the service for one of: {needed}"
        )
    if rule.person and caller.kind != "person":
        raise ForbiddenError(
            "only a person may do that, never a key", remedy="sign in under your own name"
        )


def own_only(caller: Caller, method: str, template: str) -> bool:
    """Whether an allowed caller may see there only what it asked for itself."""
    rule = rule_of(method, template)
    return rule is not None and not rule.public and not caller.roles & rule.roles


def template_of(method: str, path: str) -> str | None:
    """The template that a path belongs to; none when the table has no such route."""
    verb = "GET" if method.upper() == "HEAD" else method.upper()
    return next((t for t, pattern in _PATTERNS.get(verb, ()) if pattern.fullmatch(path)), None)


def methods_of(path: str) -> tuple[str, ...]:
    """The verbs that the table has for a path."""
    return tuple(v for v, rows in _PATTERNS.items() if any(p.fullmatch(path) for _, p in rows))


def _shape(template: str) -> str:
    return re.sub(r"\{[^{}]*\}", "{}", template)


def _pattern(template: str) -> re.Pattern[str]:
    literals = re.split(r"\{[^{}]*\}", template)
    return re.compile("[^/]+".join(map(re.escape, literals)))


_BY_SHAPE: Final = {_shape(route): rule for route, rule in TABLE.items()}
_PATTERNS: Final = {
    verb: tuple(
        (template, _pattern(template))
        for route in TABLE
        for found, _, template in (route.partition(" "),)
        if found == verb
    )
    for verb in sorted({route.partition(" ")[0] for route in TABLE})
}
