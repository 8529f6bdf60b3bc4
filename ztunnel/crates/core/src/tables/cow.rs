//! Maps that share what did not change: 256 shards behind `Arc`s, a shard is copied when it is first written.

use super::hash::Build;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

const SHARDS: usize = 256;

type Shard<K, V> = Arc<HashMap<K, V, Build>>;

/// Cloning costs one atomic increment; the first write afterwards 256, and a copy of one shard.
#[derive(Debug)]
pub(super) struct CowMap<K, V> {
    shards: Arc<[Shard<K, V>]>,
}

impl<K, V> Clone for CowMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            shards: self.shards.clone(),
        }
    }
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        let empty = Shard::default();
        Self {
            shards: (0..SHARDS).map(|_| empty.clone()).collect(),
        }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> CowMap<K, V> {
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[shard_of(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.writable(shard_of(&key)).insert(key, value);
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?; // else a shard would be copied for nothing
        self.writable(shard_of(key)).remove(key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    /// The value to be changed in place, a fresh one if there is none.
    pub(super) fn entry(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        self.writable(shard_of(&key)).entry(key).or_default()
    }

    /// Drops one shard after the other, if nobody else has them.
    pub(super) fn dismantle(mut self, pause: &mut impl FnMut()) {
        let empty = Shard::default();
        for shard in Arc::get_mut(&mut self.shards).into_iter().flatten() {
            *shard = empty.clone();
            pause();
        }
    }

    fn writable(&mut self, shard: usize) -> &mut HashMap<K, V, Build> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard])
    }

    /// How many shards are not the same memory in both.
    #[cfg(test)]
    pub(super) fn unshared(&self, other: &Self) -> usize {
        let pairs = self.shards.iter().zip(other.shards.iter());
        pairs.filter(|(a, b)| !Arc::ptr_eq(a, b)).count()
    }
}

fn shard_of<Q: Hash + ?Sized>(key: &Q) -> usize {
    // The top bits: hashbrown takes the bucket from the low ones.
    (Build::default().hash_one(key) >> 48) as usize % SHARDS
}

/// Nearly every list has one item, and a vector behind a pointer for that would be the larger part of the map.
#[derive(Clone, Debug)]
enum Items<T> {
    One(T),
    Many(Arc<Vec<T>>),
}

impl<T> Items<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Many(items) => items,
        }
    }
}

impl<T: Clone> Items<T> {
    fn insert(&mut self, item: T, order: impl Fn(&T, &T) -> Ordering) {
        if let Self::One(only) = self {
            *self = Self::Many(Arc::new(vec![only.clone()]));
        }
        if let Self::Many(items) = self {
            let items = Arc::make_mut(items);
            let at = items.partition_point(|other| order(other, &item).is_lt());
            items.insert(at, item);
        }
    }
}

/// A map to sorted lists; a key without items does not exist.
#[derive(Debug)]
pub(super) struct Groups<K, T>(CowMap<K, Items<T>>);

impl<K, T> Clone for Groups<K, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, T> Default for Groups<K, T> {
    fn default() -> Self {
        Self(CowMap::default())
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Groups<K, T> {
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> &[T]
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map_or(&[], Items::as_slice)
    }

    /// `order` is total and the same in every call: the list does not depend on the order of arrival.
    pub(super) fn add(&mut self, key: K, item: T, order: impl Fn(&T, &T) -> Ordering) {
        let shard = self.0.writable(shard_of(&key));
        match shard.entry(key) {
            Entry::Occupied(mut items) => items.get_mut().insert(item, order),
            Entry::Vacant(slot) => drop(slot.insert(Items::One(item))),
        }
    }

    pub(super) fn dismantle(self, pause: &mut impl FnMut()) {
        self.0.dismantle(pause);
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q, is: impl Fn(&T) -> bool)
    where
        K: Borrow<Q>,
    {
        let items = self.get(key);
        let mut left: Vec<T> = items.iter().filter(|item| !is(item)).cloned().collect();
        if left.len() == items.len() {
            return; // else a shard would be copied for nothing
        }
        let items = match left.len() {
            0 => return drop(self.0.remove(key)),
            1 => Items::One(left.remove(0)),
            _ => Items::Many(Arc::new(left)),
        };
        if let Some(slot) = self.0.writable(shard_of(key)).get_mut(key) {
            *slot = items;
        }
    }

    #[cfg(test)]
    pub(super) fn unshared(&self, other: &Self) -> usize {
        self.0.unshared(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_copies_one_shard_and_the_old_map_does_not_see_it() {
        let mut old = CowMap::default();
        (0..10_000).for_each(|n: u32| old.insert(n, n));
        let mut new = old.clone();
        new.insert(7, 70);
        assert_eq!((old.get(&7), new.get(&7)), (Some(&7), Some(&70)));
        assert_eq!(new.unshared(&old), 1);
        assert_eq!(new.values().count(), 10_000);
    }

    #[test]
    fn keys_spread_over_all_shards() {
        let mut map = CowMap::default();
        (0..100_000).for_each(|n: u32| map.insert(n, ()));
        let largest = map.shards.iter().map(|shard| shard.len()).max();
        assert!(
            largest < Some(2 * 100_000 / SHARDS),
            "{largest:?} of 100000 in one shard"
        );
    }

    #[test]
    fn taking_out_what_is_not_there_copies_nothing() {
        let mut old = Groups::default();
        old.add("a", 1, Ord::cmp);
        let mut new = old.clone();
        new.remove("b", |_| true);
        new.remove("a", |item| *item == 2);
        assert_eq!(new.unshared(&old), 0);
    }

    #[test]
    fn a_group_is_sorted_whatever_came_first() {
        let (mut up, mut down) = (Groups::default(), Groups::default());
        (0..5).for_each(|n| up.add("k", n, Ord::cmp));
        (0..5).rev().for_each(|n| down.add("k", n, Ord::cmp));
        assert_eq!(up.get("k"), down.get("k"));
        (0..5).for_each(|n| up.remove("k", |item| *item == n));
        assert_eq!(up.0.values().count(), 0);
    }
}
