//! A decode that cannot be talked into allocating: a deserialiser round bincode's that takes every element of a sequence
//! out of a budget, and believes no length that stands in front of one.
//!
//! Bincode by itself allocates a string's claimed length before it looks whether so many bytes follow, and serde
//! reserves up to a MiB for a sequence that claims to be long.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// Decodes a `T`, whose sequences take no more than the budget, in bytes.
pub(super) struct Budget<'b, T> {
    left: &'b Cell<usize>,
    of: PhantomData<T>,
}

impl<'b, T> Budget<'b, T> {
    pub(super) fn new(left: &'b Cell<usize>) -> Self {
        Self { left, of: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Budget<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        T::deserialize(Within { inner: deserializer, left: self.left })
    }
}

/// Whatever is inside, within the budget.
struct Within<'b, X> {
    inner: X,
    left: &'b Cell<usize>,
}

/// A visitor within the budget.
struct Visit<'b, V> {
    visitor: V,
    left: &'b Cell<usize>,
    /// The elements of a sequence and the bytes of a text go onto the heap; those of a tuple or a struct are where it is.
    elements: Elements,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Elements {
    OnTheHeap,
    InPlace,
}

/// Takes so many bytes out of the budget.
fn take<E: Error>(left: &Cell<usize>, bytes: usize) -> Result<(), E> {
    let rest = left.get().checked_sub(bytes);
    left.set(rest.ok_or_else(|| E::custom("it would take too much memory"))?);
    Ok(())
}

impl<V> Visit<'_, V> {
    /// What is copied once never lies there three times, as a sequence does that grows, for which the budget is made.
    fn copy<E: Error>(&self, bytes: usize) -> Result<(), E> {
        match self.elements {
            Elements::OnTheHeap => take(self.left, bytes.div_ceil(super::GROWING)),
            Elements::InPlace => Ok(()),
        }
    }
}

impl<'b, D> Within<'b, D> {
    fn visit<V>(&self, visitor: V, elements: Elements) -> Visit<'b, V> {
        Visit { visitor, left: self.left, elements }
    }
}

/// Passes a method on, with the visitor within the budget.
macro_rules! pass_on {
    ($($method:ident($($argument:ident: $type:ty),*) as $passed:ident, $elements:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            let visitor = self.visit(visitor, Elements::$elements);
            self.inner.$passed($($argument,)* visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Within<'_, D> {
    type Error = D::Error;

    pass_on! {
        deserialize_any() as deserialize_any, InPlace;
        deserialize_bool() as deserialize_bool, InPlace;
        deserialize_i8() as deserialize_i8, InPlace;
        deserialize_i16() as deserialize_i16, InPlace;
        deserialize_i32() as deserialize_i32, InPlace;
        deserialize_i64() as deserialize_i64, InPlace;
        deserialize_i128() as deserialize_i128, InPlace;
        deserialize_u8() as deserialize_u8, InPlace;
        deserialize_u16() as deserialize_u16, InPlace;
        deserialize_u32() as deserialize_u32, InPlace;
        deserialize_u64() as deserialize_u64, InPlace;
        deserialize_u128() as deserialize_u128, InPlace;
        deserialize_f32() as deserialize_f32, InPlace;
        deserialize_f64() as deserialize_f64, InPlace;
        deserialize_char() as deserialize_char, InPlace;
        // Borrowed from the input, which is there, and copied from it if it is to be kept: never a length that is only claimed.
        deserialize_str() as deserialize_str, InPlace;
        deserialize_string() as deserialize_str, OnTheHeap;
        deserialize_bytes() as deserialize_bytes, InPlace;
        deserialize_byte_buf() as deserialize_bytes, OnTheHeap;
        deserialize_option() as deserialize_option, InPlace;
        deserialize_unit() as deserialize_unit, InPlace;
        deserialize_unit_struct(name: &'static str) as deserialize_unit_struct, InPlace;
        deserialize_newtype_struct(name: &'static str) as deserialize_newtype_struct, InPlace;
        deserialize_seq() as deserialize_seq, OnTheHeap;
        deserialize_tuple(len: usize) as deserialize_tuple, InPlace;
        deserialize_tuple_struct(name: &'static str, len: usize) as deserialize_tuple_struct, InPlace;
        deserialize_map() as deserialize_map, OnTheHeap;
        deserialize_struct(name: &'static str, fields: &'static [&'static str]) as deserialize_struct, InPlace;
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) as deserialize_enum, InPlace;
        deserialize_identifier() as deserialize_identifier, InPlace;
        deserialize_ignored_any() as deserialize_ignored_any, InPlace;
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Passes a value on as it is.
macro_rules! pass_value {
    ($($method:ident($type:ty);)*) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.visitor.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Visit<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    pass_value! {
        visit_bool(bool);
        visit_i8(i8);
        visit_i16(i16);
        visit_i32(i32);
        visit_i64(i64);
        visit_i128(i128);
        visit_u8(u8);
        visit_u16(u16);
        visit_u32(u32);
        visit_u64(u64);
        visit_u128(u128);
        visit_f32(f32);
        visit_f64(f64);
        visit_char(char);
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<V::Value, E> {
        self.copy(text.len())?;
        self.visitor.visit_borrowed_str(text)
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<V::Value, E> {
        self.copy(bytes.len())?;
        self.visitor.visit_borrowed_bytes(bytes)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Within { inner, left: self.left })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Within { inner, left: self.left })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Access { inner, left: self.left, elements: self.elements })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Access { inner, left: self.left, elements: self.elements })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(Within { inner, left: self.left })
    }
}

/// The elements of a sequence, each out of the budget.
struct Access<'b, A> {
    inner: A,
    left: &'b Cell<usize>,
    elements: Elements,
}

impl<A> Access<'_, A> {
    fn take<T, E: Error>(&self) -> Result<(), E> {
        if self.elements == Elements::OnTheHeap {
            // At least one, so that elements of no size end too.
            take(self.left, size_of::<T>().max(1))?;
        }
        Ok(())
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Access<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.take::<T::Value, _>()?;
        self.inner.next_element_seed(Within { inner: seed, left: self.left })
    }

    // No `size_hint`: nothing is reserved for elements that have not been read.
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Access<'_, A> {
    type Error = A::Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.take::<T::Value, _>()?;
        self.inner.next_key_seed(Within { inner: seed, left: self.left })
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.take::<T::Value, _>()?;
        self.inner.next_value_seed(Within { inner: seed, left: self.left })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Within<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Within { inner: deserializer, left: self.left })
    }
}

impl<'b, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Within<'b, A> {
    type Error = A::Error;
    type Variant = Within<'b, A::Variant>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self::Variant), A::Error> {
        let left = self.left;
        let (value, inner) = self.inner.variant_seed(Within { inner: seed, left })?;
        Ok((value, Within { inner, left }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.newtype_variant_seed(Within { inner: seed, left: self.left })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let visitor = self.visit(visitor, Elements::InPlace);
        self.inner.tuple_variant(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.visit(visitor, Elements::InPlace);
        self.inner.struct_variant(fields, visitor)
    }
}
