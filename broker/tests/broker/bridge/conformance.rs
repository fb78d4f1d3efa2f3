//! The API keeps to its own description: a stranger reads it, and tries.

use serde_json::Value;

use super::Bridge;
use crate::support::{Kind, World};

#[test]
fn the_description_has_the_25_operations() {
    let world = World::new(Kind::Sqlite);
    let bridge = Bridge::start(&world);
    let answer = bridge.send("GET", "/openapi.json", "", b"");
    let document: Value = serde_json::from_slice(&answer.body).unwrap();
    let paths = document["paths"].as_object().unwrap().values();
    let operations: usize = paths.map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!(operations, 25);
    assert_eq!(document["servers"][0]["url"], "/api");
}
