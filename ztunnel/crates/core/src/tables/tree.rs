//! An ordered set that shares with its older versions what did not change, and in which an item is found by its share of
//! the total weight. Owns the shape only: order, weight and priority are its user's.
//!
//! A treap (Seidel, Aragon 1996): a search tree by order and a heap by priority. Priorities are hashes of the items, so the
//! shape depends on the content alone. Every operation but iteration is O(log n).

use std::cmp::Ordering;
use std::sync::Arc;

type Link<T> = Option<Arc<Node<T>>>;

#[derive(Clone, Debug)]
struct Node<T> {
    item: T,
    priority: u64,
    /// Of the item and everything below.
    total: u64,
    left: Link<T>,
    right: Link<T>,
}

pub(super) trait Weighed: Clone {
    fn weight(&self) -> u64;
    /// The same for items that compare equal; else as good as random.
    fn priority(&self) -> u64;
}

/// Cloning costs one atomic increment.
#[derive(Clone, Debug)]
pub(super) struct Tree<T>(Link<T>);

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Weighed> Tree<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// In place of its equal, if there is one.
    pub(super) fn insert(&mut self, item: T, order: &impl Fn(&T, &T) -> Ordering) {
        let (priority, total) = (item.priority(), item.weight());
        let node = Node {
            item,
            priority,
            total,
            left: None,
            right: None,
        };
        put(&mut self.0, node, order);
    }

    /// `place`: where an item lies as seen from the one to be removed.
    pub(super) fn remove(&mut self, place: &impl Fn(&T) -> Ordering) {
        take(&mut self.0, place);
    }

    /// The weight of all items at the beginning for which this holds; it must hold for no later one.
    pub(super) fn weight_while(&self, holds: impl Fn(&T) -> bool) -> u64 {
        let (mut link, mut sum) = (&self.0, 0);
        while let Some(node) = link {
            visited();
            link = if holds(&node.item) {
                sum += total(&node.left) + node.item.weight();
                &node.right
            } else {
                &node.left
            };
        }
        sum
    }

    /// The item that owns this part of the total weight; None: it is beyond the total.
    pub(super) fn at(&self, mut weight: u64) -> Option<&T> {
        let mut link = &self.0;
        while let Some(node) = link {
            visited();
            let (before, own) = (total(&node.left), node.item.weight());
            if weight < before {
                link = &node.left;
            } else if weight - before < own {
                return Some(&node.item);
            } else {
                weight -= before + own;
                link = &node.right;
            }
        }
        None
    }

    /// The first item for which this does not hold; it must hold for none after it.
    pub(super) fn first_after(&self, holds: impl Fn(&T) -> bool) -> Option<&T> {
        let (mut link, mut found) = (&self.0, None);
        while let Some(node) = link {
            visited();
            link = if holds(&node.item) {
                &node.right
            } else {
                found = Some(&node.item);
                &node.left
            };
        }
        found
    }

    pub(super) fn iter(&self) -> Iter<'_, T> {
        let mut iter = Iter(Vec::new());
        iter.descend(&self.0);
        iter
    }
}

fn total<T>(link: &Link<T>) -> u64 {
    link.as_ref().map_or(0, |node| node.total)
}

impl<T: Weighed> Node<T> {
    fn sum(&mut self) {
        self.total = total(&self.left) + self.item.weight() + total(&self.right);
    }
}

fn put<T: Weighed>(link: &mut Link<T>, mut new: Node<T>, order: &impl Fn(&T, &T) -> Ordering) {
    match link {
        None => *link = Some(Arc::new(new)),
        Some(node) if new.priority > node.priority => {
            (new.left, new.right) = split(link.take(), &|item| order(item, &new.item).is_lt());
            new.sum();
            *link = Some(Arc::new(new));
        }
        Some(node) => {
            let node = Arc::make_mut(node);
            match order(&new.item, &node.item) {
                Ordering::Less => put(&mut node.left, new, order),
                Ordering::Greater => put(&mut node.right, new, order),
                Ordering::Equal => node.item = new.item,
            }
            node.sum();
        }
    }
}

fn split<T: Weighed>(link: Link<T>, left: &impl Fn(&T) -> bool) -> (Link<T>, Link<T>) {
    let Some(mut arc) = link else {
        return (None, None);
    };
    let node = Arc::make_mut(&mut arc);
    if left(&node.item) {
        let (low, high) = split(node.right.take(), left);
        node.right = low;
        node.sum();
        (Some(arc), high)
    } else {
        let (low, high) = split(node.left.take(), left);
        node.left = high;
        node.sum();
        (low, Some(arc))
    }
}

fn take<T: Weighed>(link: &mut Link<T>, place: &impl Fn(&T) -> Ordering) {
    let Some(node) = link else { return };
    let ordering = place(&node.item);
    let node = Arc::make_mut(node);
    match ordering {
        // It lies before the one that is sought.
        Ordering::Less => take(&mut node.right, place),
        Ordering::Greater => take(&mut node.left, place),
        Ordering::Equal => {
            *link = merge(node.left.take(), node.right.take());
            return;
        }
    }
    node.sum();
}

fn merge<T: Weighed>(left: Link<T>, right: Link<T>) -> Link<T> {
    match (left, right) {
        (None, one) | (one, None) => one,
        (Some(mut low), Some(mut high)) => {
            if low.priority > high.priority {
                let node = Arc::make_mut(&mut low);
                node.right = merge(node.right.take(), Some(high));
                node.sum();
                Some(low)
            } else {
                let node = Arc::make_mut(&mut high);
                node.left = merge(Some(low), node.left.take());
                node.sum();
                Some(high)
            }
        }
    }
}

/// In order.
#[derive(Clone)]
pub(super) struct Iter<'a, T>(Vec<&'a Node<T>>);

impl<'a, T> Iter<'a, T> {
    fn descend(&mut self, mut link: &'a Link<T>) {
        while let Some(node) = link {
            self.0.push(node);
            link = &node.left;
        }
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        let node = self.0.pop()?;
        visited();
        self.descend(&node.right);
        Some(&node.item)
    }
}

#[cfg(test)]
thread_local! {
    static VISITS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many nodes of all trees this thread has looked at.
#[cfg(test)]
pub(crate) fn visits() -> usize {
    VISITS.get()
}

fn visited() {
    #[cfg(test)]
    VISITS.set(VISITS.get() + 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Dice;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug, PartialEq)]
    struct Item(u32, u64);

    impl Weighed for Item {
        fn weight(&self) -> u64 {
            self.1
        }
        fn priority(&self) -> u64 {
            Dice(self.0.into()).roll()
        }
    }

    fn by_number(a: &Item, b: &Item) -> Ordering {
        a.0.cmp(&b.0)
    }

    /// Everything that can be asked, answered by a plain map.
    fn check(tree: &Tree<Item>, plain: &BTreeMap<u32, u64>) {
        let items: Vec<_> = tree.iter().map(|item| (item.0, item.1)).collect();
        assert!(
            items
                .iter()
                .copied()
                .eq(plain.iter().map(|(n, w)| (*n, *w)))
        );
        let mut weight = 0;
        for (number, own) in plain {
            assert_eq!(tree.weight_while(|item| item.0 < *number), weight);
            assert_eq!(
                tree.first_after(|item| item.0 < *number).map(|item| item.0),
                Some(*number)
            );
            if *own > 0 {
                assert_eq!(tree.at(weight).map(|item| item.0), Some(*number));
                assert_eq!(tree.at(weight + own - 1).map(|item| item.0), Some(*number));
            }
            weight += own;
        }
        assert_eq!(tree.at(weight), None);
    }

    #[test]
    fn it_answers_like_a_plain_map_and_old_versions_stay() {
        for seed in 0..30 {
            let dice = &mut Dice(seed);
            let (mut tree, mut plain) = (Tree::default(), BTreeMap::new());
            let mut versions = Vec::new();
            for _ in 0..120 {
                let (number, weight) = (dice.below(40) as u32, dice.below(4) as u64);
                if dice.one_in(3) {
                    tree.remove(&|item: &Item| item.0.cmp(&number));
                    plain.remove(&number);
                } else {
                    tree.insert(Item(number, weight), &by_number);
                    plain.insert(number, weight);
                }
                versions.push((tree.clone(), plain.clone()));
            }
            versions.iter().for_each(|(tree, plain)| check(tree, plain));
        }
    }

    #[test]
    fn ten_thousand_items_are_no_deeper_than_forty() {
        let mut tree = Tree::default();
        (0..10_000).for_each(|n| tree.insert(Item(n, 1), &by_number));
        for weight in 0..10_000 {
            let before = visits();
            assert_eq!(tree.at(weight), Some(&Item(weight as u32, 1)));
            assert!(visits() - before <= 40);
        }
    }
}
