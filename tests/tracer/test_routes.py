"""Paths fold to few names, whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.routes import RouteTable, fold_segment

KEPT = """
/
//
/users
/users/
/api/v1/users
/api/v2.1/orders
/apis/apps/v1beta1/deployments
/v1alpha1/things
/index.html
/robots.txt
/.well-known/openid-configuration
/static/app.js
/static/app.min.js
/static/jquery-3.6.0.min.js
/static/archive.tar.gz
/en-US/docs
/zh-Hans-CN/docs
/oauth2/token
/hash/sha256
/k8s/i18n/a11y
/files/base64
/2fa/setup
/wizard/step-2
/terms-and-conditions
/forgot_password_form
/getUserAccountSettings
/XMLHttpRequestURL
/deadbeef
/facade
/odata/$metadata
/models/gpt:generateContent
/users/:id
/users/{id}
/users/{user_id}
/users/*
/~alice
/Caf\u00e9
/wiki/\u8a5e
/..
/a/./b
/package.grpc.Service/Method
"""

FOLDED = """
/users/123                                      /users/{id}
/users/0                                        /users/{id}
/users/-4                                       /users/{id}
/users/123/                                     /users/{id}/
/users/123/orders/456                           /users/{id}/orders/{id}
/users/3f2504e0-4f89-11d3-9a0c-0305e82c3301     /users/{id}
/users/3F2504E0-4F89-11D3-9A0C-0305E82C3301     /users/{id}
/users/3f2504e04f8911d39a0c0305e82c3301         /users/{id}
/users/{3f2504e0-4f89-11d3-9a0c-0305e82c3301}   /users/{id}
/users/urn:uuid:3f2504e0-4f89-11d3-9a0c-0305e82c3301 /users/{id}
/ulid/01ARZ3NDEKTSV4RRFFQ69G5FAV                /ulid/{id}
/commit/a94a8fe5ccb19ba61c4c0873d391e987982fbbd3 /commit/{id}
/commit/a94a8fe                                 /commit/{id}
/objects/507f1f77bcf86cd799439011               /objects/{id}
/hex/abcdef1a                                   /hex/{id}
/nanoid/V1StGXR8_Z5jdHi6B-myT                   /nanoid/{id}
/video/dQw4w9WgXcQ                              /video/{id}
/token/dGhpcyBJcyBBVG9rZW4                      /token/{id}
/token/aGVsbG8td29ybGQ=                         /token/{id}
/token/QWxhZGRpbjpvcGVuU2VzYW                   /token/{id}
/jwt/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9 /jwt/{id}
/reports/2024-05-01                             /reports/{id}
/reports/2024/05/01                             /reports/{id}/{id}/{id}
/reports/2024-05-01T10:20:30Z                   /reports/{id}
/reports/20240501                               /reports/{id}
/net/10.0.0.1                                   /net/{id}
/net/2001:db8::1                                /net/{id}
/download/1.2.3                                 /download/{id}
/img/123.png                                    /img/{id}.png
/img/180x180.png                                /img/{id}.png
/img/IMG_2034.JPG                               /img/{id}.JPG
/static/main.3f2a1b9c.js                        /static/{id}.js
/static/main.3f2a1b9c.js.map                    /static/{id}.js.map
/dump/a1b2c3.tar.gz                             /dump/{id}.tar.gz
/orders/order-12345                             /orders/{id}
/orders/ORD-2024-0001                           /orders/{id}
/orders/abc123                                  /orders/{id}
/posts/my-great-title-98765                     /posts/{id}
/posts/how-i-learned-to-love-cheese             /posts/{id}
/users/alice@example.com                        /users/{id}
/users/alice%40example.com                      /users/{id}
/@alice                                         /{id}
/projects/group%2Fproject                       /projects/{id}
/files/two%20words.pdf                          /files/{id}.pdf
/files/two words                                /files/{id}
/cells/1,2                                      /cells/{id}
/caf%C3%A9                                      /caf\u00e9
/%75sers/1                                      /users/{id}
/bad/%FF                                        /bad/{id}
/bad/%                                          /bad/{id}
/jobs/123:cancel                                /jobs/{id}:cancel
/odata/Users(7)                                 /odata/Users({id})
/odata/Users('x;y')/Orders                      /odata/Users({id})/Orders
/odata/Users(Name='x',Id=3)/Orders              /odata/Users({id})/Orders
/cart;jsessionid=8F2C3A                         /cart
/cart/12;v=1.1/items                            /cart/{id}/items
/a?b=1                                          /{id}
/numbers/\u0661\u0662\u0663                                    /numbers/{id}
"""


def table(text: str) -> list[tuple[str, str]]:
    rows = []
    for line in text.strip().splitlines():
        path, _, name = line.partition("  ") if "  " in line else line.rpartition(" ")
        rows.append((path.strip(), name.strip()))
    return rows


@pytest.mark.parametrize("path", KEPT.split())
def test_words_are_kept(path: str) -> None:
    assert RouteTable().route(path) == path


@pytest.mark.parametrize(("path", "name"), table(FOLDED))
def test_values_are_folded(path: str, name: str) -> None:
    routes = RouteTable()
    assert routes.route(path) == name
    assert routes.overflowed == 0


def test_what_is_no_path_comes_back() -> None:
    routes = RouteTable()
    for target in ("*", "", "example.com:443", "http://example.com/users/1"):
        assert routes.route(target) == target
    assert len(routes) == 0


def test_depth_is_bounded() -> None:
    routes = RouteTable()
    assert routes.route("/a" * 12) == "/a" * 12
    assert routes.route("/a" * 13) == "/a" * 12 + "/*"
    assert routes.route("/a" * 400) == "/a" * 12 + "/*"


def test_routes_is_route_of_each() -> None:
    routes = RouteTable()
    assert routes.routes(["/a/1", "/a/2", "/b"]) == ["/a/{id}", "/a/{id}", "/b"]
    assert routes.routes([]) == []
    assert len(routes) == 2


def words(count: int) -> list[str]:
    """`count` different words of letters only."""
    letters = "abcdefghijklmnopqrst"
    return [letters[i // 400] + letters[i // 20 % 20] + letters[i % 20] for i in range(count)]


def test_names_where_words_were_expected_become_one_name() -> None:
    routes = RouteTable(max_routes=100)
    names = routes.routes([f"/wiki/{word}" for word in words(500)])
    assert names[:10] == [f"/wiki/{word}" for word in words(10)]
    assert set(names[10:]) == {"/wiki/{name}"}
    assert routes.overflowed == 490
    assert routes.route("/users") == "/users"
    assert routes.route("/wiki/zzz/history") == "/wiki/{name}/history"
    assert routes.route(f"/wiki/{words(1)[0]}") == f"/wiki/{words(1)[0]}"


def test_stages_of_the_bound() -> None:
    routes = RouteTable(max_routes=20)
    names = routes.routes(
        [f"/{first}/{second}/{third}" for first in "ab" for second in "cde" for third in "fghij"]
    )
    assert len(set(names)) == 19
    assert names[0] == "/a/c/f"
    assert "/a/c/{name}" in names
    assert "/b/*" in names
    assert routes.route("/x/y") == "/*"
    assert routes.route("/x") == "/*"
    assert routes.route("/a/c/f") == "/a/c/f"
    assert len(routes) == 20


def test_smallest_tables() -> None:
    one = RouteTable(max_routes=1, max_cached=1)
    assert one.routes(["/", "/a", "/a/b"]) == ["/*", "/*", "/*"]
    two = RouteTable(max_routes=2)
    assert two.routes(["/", "/a", "/a/b"]) == ["/", "/*", "/*"]
    with pytest.raises(ValueError, match="positive"):
        RouteTable(max_routes=0)


segments = st.one_of(
    st.text(max_size=20),
    st.text("abcXYZ019-_.~%{}()*:;@=$", max_size=24),
    st.sampled_from(["users", "{id}", "*", "v1", "..", "%7Bid%7D", "{id}.png", "A({id})", "a:b"]),
)
paths = st.lists(segments, max_size=15).map(lambda parts: "/" + "/".join(parts))


@given(segments.filter(lambda segment: "/" not in segment))
def test_folding_a_segment_twice_is_folding_it_once(segment: str) -> None:
    once = fold_segment(segment)
    assert fold_segment(once) == once
    assert "/" not in once


@settings(max_examples=200)
@given(st.lists(paths, max_size=60), st.integers(1, 30))
def test_any_paths_give_few_names_that_stay(many: list[str], max_routes: int) -> None:
    routes = RouteTable(max_routes=max_routes, max_cached=8)
    names = routes.routes(many)
    assert len(set(names)) <= len(routes) <= max_routes
    assert all(name.startswith("/") for name in names)
    assert routes.routes(names) == names
    assert len(routes) <= max_routes
