//! Attributes by name: as plain text, or as a constant that knows what it holds.
//!
//! Every call that is given the name of an attribute takes both. Text names an attribute of any type,
//! and the caller says which; an [`Attribute`] says so itself, once, beside its name:
//!
//! ```text
//!   session.get::<u64>("visits")              const VISITS: Attribute<u64> = Attribute::new("visits");
//!   session.insert("visits", 1_u64)           session.get(VISITS)     session.insert(VISITS, 1)
//! ```
//!
//! Five traits say what may be named where, none of which can be implemented elsewhere: [`Named`] where
//! the type does not matter, [`Holds`] where a value is read, [`Takes`] where one is written, [`Counts`]
//! and [`Gathers`] where something is added to a number or a list.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::mem;

use crate::model::policy::Rule;

/// The name of an attribute together with what it holds, and how writes of it merge: for constants.
///
/// ```
/// use sessile::{Attribute, Policy, Rule, Store};
///
/// const NAME: Attribute<String> = Attribute::new("name");
/// const VISITS: Attribute<u64> = Attribute::new("visits").rule(Rule::Sum);
///
/// # let store = Store::memory()?;
/// # let visitors = store.container_with("visitors", Policy::new())?;
/// store.transact(|txn| {
///     let session = txn.get_or_create(&visitors, "ada")?;
///     session.insert(NAME, "Ada")?;
///     session.update(VISITS, |visits| *visits += 1) // merges, because of the rule
/// })?;
/// let txn = store.begin()?;
/// let session = txn.get_or_create(&visitors, "ada")?;
/// assert_eq!(session.get(VISITS)?, Some(1));
/// assert_eq!(session.get::<u64>("visits")?, Some(1)); // the same attribute
/// # Ok::<(), sessile::Error>(())
/// ```
///
/// What is no `T` does not compile:
///
/// ```compile_fail,E0277
/// # use sessile::{Attribute, Policy, Store};
/// const VISITS: Attribute<u64> = Attribute::new("visits");
/// # let store = Store::memory().unwrap();
/// # let visitors = store.container_with("visitors", Policy::new()).unwrap();
/// # let session = store.begin().unwrap().create(&visitors, "ada").unwrap();
/// session.insert(VISITS, "once").unwrap();
/// ```
pub struct Attribute<T> {
    name: &'static str,
    rule: Option<Rule>,
    holds: PhantomData<fn() -> T>,
}

impl<T> Attribute<T> {
    /// The attribute of this name. Its writes merge as the container's policy says.
    pub const fn new(name: &'static str) -> Self {
        Attribute { name, rule: None, holds: PhantomData }
    }

    /// Sets the merge rule of its writes. It goes before the policy's, and needs not be stored there.
    pub const fn rule(self, rule: Rule) -> Self {
        let name = self.name;
        // Constants run no destructors, and there is nothing in it to give back.
        mem::forget(self);
        Attribute { name, rule: Some(rule), holds: PhantomData }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

impl<T> Clone for Attribute<T> {
    fn clone(&self) -> Self {
        Attribute { name: self.name, rule: self.rule.clone(), holds: PhantomData }
    }
}

impl<T> fmt::Debug for Attribute<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attribute({:?})", self.name)
    }
}

/// What names an attribute: text, or an [`Attribute`].
pub trait Named: sealed::Named {}

/// What names an attribute that is read as a `T`: text, or an [`Attribute`] that holds it.
pub trait Holds<T>: Named {}

/// What names an attribute that a `V` may be written to: text, or an [`Attribute`] that holds it. Where
/// a `T` is held a `&T` will do, and a `&str` for a `String`.
pub trait Takes<V>: Named {}

/// What names an attribute that a number may be added to: text, or an [`Attribute`] that holds one.
pub trait Counts: Named {}

/// What names an attribute that an `I` may be put into: text, or an [`Attribute`] that holds a list or set
/// of them. As with [`Takes`] a `&I` will do, and a `&str` for a `String`.
pub trait Gathers<I>: Named {}

mod sealed {
    use crate::model::policy::Rule;

    pub trait Named {
        /// The name.
        fn name(&self) -> &str;

        /// The merge rule that goes before the policy's.
        fn rule(&self) -> Option<&Rule>;
    }
}

impl<S: AsRef<str> + ?Sized> sealed::Named for &S {
    fn name(&self) -> &str {
        (**self).as_ref()
    }

    fn rule(&self) -> Option<&Rule> {
        None
    }
}

impl<T> sealed::Named for Attribute<T> {
    fn name(&self) -> &str {
        self.name
    }

    fn rule(&self) -> Option<&Rule> {
        self.rule.as_ref()
    }
}

impl<T> sealed::Named for &Attribute<T> {
    fn name(&self) -> &str {
        self.name
    }

    fn rule(&self) -> Option<&Rule> {
        self.rule.as_ref()
    }
}

impl<S: AsRef<str> + ?Sized> Named for &S {}
impl<T> Named for Attribute<T> {}
impl<T> Named for &Attribute<T> {}

impl<S: AsRef<str> + ?Sized, T> Holds<T> for &S {}
impl<T> Holds<T> for Attribute<T> {}
impl<T> Holds<T> for &Attribute<T> {}

impl<S: AsRef<str> + ?Sized, V> Takes<V> for &S {}
impl<T> Takes<T> for Attribute<T> {}
impl<T> Takes<&T> for Attribute<T> {}
impl Takes<&str> for Attribute<String> {}
impl<V, T> Takes<V> for &Attribute<T> where Attribute<T>: Takes<V> {}

impl<S: AsRef<str> + ?Sized> Counts for &S {}
impl<T> Counts for &Attribute<T> where Attribute<T>: Counts {}

macro_rules! counts {
    ($($number:ty),*) => {
        $(impl Counts for Attribute<$number> {})*
    };
}

counts!(i8, i16, i32, i64, u8, u16, u32, u64, usize, f32, f64);

impl<S: AsRef<str> + ?Sized, I> Gathers<I> for &S {}
impl<I, T> Gathers<I> for &Attribute<T> where Attribute<T>: Gathers<I> {}

macro_rules! gathers {
    ($($list:ident),*) => {
        $(
            impl<I> Gathers<I> for Attribute<$list<I>> {}
            impl<I> Gathers<&I> for Attribute<$list<I>> {}
            impl Gathers<&str> for Attribute<$list<String>> {}
        )*
    };
}

gathers!(Vec, VecDeque, BTreeSet, HashSet);
