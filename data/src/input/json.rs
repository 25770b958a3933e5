//! The text and the score of one JSON object, without building the rest of it.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess};

/// A path into a JSON object: names and array indices between dots, as in `meta.pages.0.text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldPath {
    names: Vec<String>,
}

impl FieldPath {
    pub(crate) fn new(path: &str) -> Self {
        Self { names: path.split('.').map(str::to_owned).collect() }
    }
}

/// A value at the end of a path.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found {
    Text(String),
    Number(f64),
    /// Something else, by its kind: "null", "a list".
    Other(&'static str),
}

/// What the wanted paths hold; `None` where the object has no such field.
///
/// # Errors
/// The parser's message, with the column, if the bytes are not one JSON value.
pub(crate) fn extract<const N: usize>(
    record: &[u8],
    paths: [Option<&FieldPath>; N],
) -> serde_json::Result<[Option<Found>; N]> {
    let mut found = [const { None }; N];
    let wanted = paths.map(|path| path.map(|path| path.names.as_slice()));
    let mut parser = serde_json::Deserializer::from_slice(record);
    Walk { wanted, found: &mut found }.deserialize(&mut parser)?;
    parser.end()?;
    Ok(found)
}

/// Walks a value; `wanted` is what is left of each path, `None` where it led elsewhere.
struct Walk<'a, 'p, const N: usize> {
    wanted: [Option<&'p [String]>; N],
    found: &'a mut [Option<Found>; N],
}

impl<'p, const N: usize> Walk<'_, 'p, N> {
    /// The paths that go on through the member or element `name`.
    fn below(&self, name: &str) -> [Option<&'p [String]>; N] {
        self.wanted.map(|path| match path?.split_first() {
            Some((first, rest)) if first == name => Some(rest),
            _ => None,
        })
    }

    fn keep(self, value: &Found) {
        for (slot, path) in self.found.iter_mut().zip(self.wanted) {
            if path.is_some_and(<[String]>::is_empty) {
                *slot = Some(value.clone());
            }
        }
    }
}

impl<'de, const N: usize> DeserializeSeed<'de> for Walk<'_, '_, N> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.wanted.iter().all(Option::is_none) {
            return deserializer.deserialize_ignored_any(IgnoredAny).map(|_| ());
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de, const N: usize> serde::de::Visitor<'de> for Walk<'_, '_, N> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let wanted = self.below(&name);
            map.next_value_seed(Walk { wanted, found: &mut *self.found })?;
        }
        self.keep(&Found::Other("an object"));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for index in 0_u64.. {
            let wanted = self.below(&index.to_string());
            if seq.next_element_seed(Walk { wanted, found: &mut *self.found })?.is_none() {
                break;
            }
        }
        self.keep(&Found::Other("a list"));
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.keep(&Found::Text(text.to_owned()));
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        self.keep(&Found::Number(number));
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.visit_f64(number as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        self.visit_f64(number as f64)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.keep(&Found::Other("a boolean"));
        Ok(())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.keep(&Found::Other("null"));
        Ok(())
    }
}
