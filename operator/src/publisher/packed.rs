//! Values that are rarely read, in few bytes. An edge of an object takes more than a kilobyte as a value, and about a tenth of
//! that as compressed JSON.

use std::{fmt, marker::PhantomData};

use serde::{Serialize, de::DeserializeOwned};

/// Value as compressed JSON. Equal values have equal bytes.
pub(super) struct Packed<T> {
    json: Box<[u8]>,
    value: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Packed<T> {
    /// Packs a value.
    ///
    /// # Errors
    /// If it has no form in JSON.
    pub(super) fn new(value: &T) -> serde_json::Result<Self> {
        let json = serde_json::to_vec(value)?;
        Ok(Self { json: lz4_flex::compress_prepend_size(&json).into(), value: PhantomData })
    }

    /// Returns the value; `None` if its JSON is not a form of it.
    pub(super) fn unpack(&self) -> Option<T> {
        let json = lz4_flex::decompress_size_prepended(&self.json).ok()?;
        serde_json::from_slice(&json).ok()
    }
}

impl<T> Clone for Packed<T> {
    fn clone(&self) -> Self {
        Self { json: self.json.clone(), value: PhantomData }
    }
}

impl<T> PartialEq for Packed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

impl<T> fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} bytes)", self.json.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn unpacked_value_is_the_packed_one(value: Vec<(String, Option<u64>)>, other: Vec<(String, Option<u64>)>) {
            let packed = Packed::new(&value).expect("it has a form in JSON");
            let of_other = Packed::new(&other).expect("it has a form in JSON");
            prop_assert_eq!(packed == of_other, value == other);
            prop_assert_eq!(packed.unpack(), Some(value));
        }
    }

    #[test]
    fn packed_list_takes_a_fraction_of_its_json() {
        let names: Vec<String> = (0..1000).map(|number| format!("deployment-{}", number % 10)).collect();
        let packed = Packed::new(&names).expect("it has a form in JSON");
        assert!(packed.json.len() < 2000, "{packed:?}");
    }
}
