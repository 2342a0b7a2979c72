//! A sorted list of endpoints in chunks, copied on write: a change costs one chunk and the list of
//! chunks, whatever the size of the service.

use std::sync::Arc;

/// Most items of one chunk. A change rewrites one chunk (cost grows with this) and the list of
/// chunks (cost shrinks with it); at 10,000 endpoints the two meet near 100.
pub(super) const MAX_CHUNK: usize = 100;

/// An immutable run of items, sorted by id, never empty.
pub(super) trait Chunk: Sized {
    /// One item, borrowed from a chunk or from the input of a change.
    type Item<'a>: Clone
    where
        Self: 'a;

    /// The unique id of an item.
    fn id<'a>(item: &Self::Item<'a>) -> &'a str;
    /// Number of items.
    fn len(&self) -> usize;
    /// The item at `index`.
    fn get(&self, index: usize) -> Option<Self::Item<'_>>;
    /// A chunk of these items: at least one, at most [`MAX_CHUNK`], sorted.
    fn build(items: &[Self::Item<'_>]) -> Self;
}

/// One edit: the id, and what it becomes.
pub(super) type Edit<'a, C> = (&'a str, Option<<C as Chunk>::Item<'a>>);

/// The list.
#[derive(Debug)]
pub(super) struct ChunkList<C> {
    inner: Arc<Inner<C>>,
}

#[derive(Debug)]
struct Inner<C> {
    chunks: Vec<Arc<C>>,
    /// Number of items before each chunk.
    starts: Vec<usize>,
    len: usize,
}

impl<C> Clone for ChunkList<C> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<C: Chunk> Default for ChunkList<C> {
    fn default() -> Self {
        Self::of_chunks(Vec::new())
    }
}

impl<C: Chunk> ChunkList<C> {
    fn of_chunks(chunks: Vec<Arc<C>>) -> Self {
        let mut starts = Vec::with_capacity(chunks.len());
        let mut len = 0;
        for chunk in &chunks {
            starts.push(len);
            len += chunk.len();
        }
        Self { inner: Arc::new(Inner { chunks, starts, len }) }
    }

    /// A list of items that are sorted by id and unique.
    pub(super) fn of_sorted<'a>(items: &[C::Item<'a>]) -> Self
    where
        C: 'a,
    {
        let mut chunks = Vec::with_capacity(items.len().div_ceil(MAX_CHUNK));
        push_chunks(&mut chunks, items);
        Self::of_chunks(chunks)
    }

    pub(super) fn len(&self) -> usize {
        self.inner.len
    }

    /// Whether both are the same allocation, and so equal without a look at the items.
    pub(super) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Whether both have equal items. Chunks that are shared cost nothing.
    pub(super) fn equal<'a>(&'a self, other: &'a Self, same: impl Fn(C::Item<'a>, C::Item<'a>) -> bool) -> bool {
        if self.same(other) || self.len() != other.len() {
            return self.len() == other.len();
        }
        if self.inner.starts != other.inner.starts {
            return self.iter().zip(other.iter()).all(|(a, b)| same(a, b));
        }
        let mut pairs = self.inner.chunks.iter().zip(&other.inner.chunks);
        pairs.all(|(a, b)| Arc::ptr_eq(a, b) || items(&**a).zip(items(&**b)).all(|(a, b)| same(a, b)))
    }

    pub(super) fn chunks(&self) -> &[Arc<C>] {
        &self.inner.chunks
    }

    /// The chunks of both that are not the same allocation in the other, in order. Both lists are
    /// sorted, so a shared chunk is met from both sides at once.
    pub(super) fn unshared<'a>(&'a self, other: &'a Self) -> (Vec<&'a C>, Vec<&'a C>) {
        let first = |chunk: &&'a Arc<C>| chunk.get(0).map(|item| C::id(&item));
        let (mut ours, mut theirs) = (self.inner.chunks.iter().peekable(), other.inner.chunks.iter().peekable());
        let (mut left, mut right) = (Vec::new(), Vec::new());
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            if Arc::ptr_eq(a, b) {
                ours.next();
                theirs.next();
            } else if first(a) <= first(b) {
                left.extend(ours.next().map(|chunk| &**chunk));
            } else {
                right.extend(theirs.next().map(|chunk| &**chunk));
            }
        }
        left.extend(ours.map(|chunk| &**chunk));
        right.extend(theirs.map(|chunk| &**chunk));
        (left, right)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = C::Item<'_>> {
        self.inner.chunks.iter().flat_map(|chunk| items(&**chunk))
    }

    /// The item with this id.
    pub(super) fn find(&self, id: &str) -> Option<C::Item<'_>> {
        let chunk = self.inner.chunks.get(self.chunk_of(id))?;
        let (mut low, mut high) = (0, chunk.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let item = chunk.get(middle)?;
            match C::id(&item).cmp(id) {
                std::cmp::Ordering::Equal => return Some(item),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The item at `index` in the order of ids.
    pub(super) fn nth(&self, index: usize) -> Option<C::Item<'_>> {
        let chunk = self.inner.starts.partition_point(|start| *start <= index).checked_sub(1)?;
        let start = self.inner.starts.get(chunk)?;
        self.inner.chunks.get(chunk)?.get(index - start)
    }

    /// The chunk that holds `id` or would take it.
    fn chunk_of(&self, id: &str) -> usize {
        let starts_at_or_before = |chunk: &Arc<C>| chunk.get(0).is_some_and(|first| C::id(&first) <= id);
        self.inner.chunks.partition_point(starts_at_or_before).saturating_sub(1)
    }

    /// The list after `edits`, which are sorted by id and unique. Chunks without an edit are shared
    /// with `self`.
    pub(super) fn edited<'a>(&'a self, edits: &[Edit<'a, C>]) -> Self {
        let mut chunks: Vec<Arc<C>> = Vec::with_capacity(self.inner.chunks.len() + 1);
        let mut rest = edits;
        if self.inner.chunks.is_empty() {
            let items: Vec<C::Item<'a>> = edits.iter().filter_map(|(_, item)| item.clone()).collect();
            return Self::of_sorted(&items);
        }
        let mut copied = 0;
        while let Some((id, _)) = rest.first() {
            let index = self.chunk_of(id);
            chunks.extend(self.inner.chunks.iter().skip(copied).take(index.saturating_sub(copied)).cloned());
            let Some(chunk) = self.inner.chunks.get(index) else { break };
            let next_first = self.inner.chunks.get(index + 1).and_then(|next| next.get(0));
            let here = match &next_first {
                Some(next) => rest.partition_point(|(id, _)| *id < C::id(next)),
                None => rest.len(),
            };
            let (now, later) = rest.split_at(here);
            rest = later;
            push_chunks(&mut chunks, &merged::<C>(chunk, now));
            copied = index + 1;
        }
        chunks.extend(self.inner.chunks.iter().skip(copied).cloned());
        if chunks.len() > 8 && chunks.len() * (MAX_CHUNK / 4) > chunks.iter().map(|chunk| chunk.len()).sum() {
            // Removals left the chunks nearly empty; pack them again.
            let items: Vec<C::Item<'_>> = chunks.iter().flat_map(|chunk| items(&**chunk)).collect();
            return Self::of_sorted(&items);
        }
        Self::of_chunks(chunks)
    }
}

fn items<C: Chunk>(chunk: &C) -> impl Iterator<Item = C::Item<'_>> {
    (0..chunk.len()).filter_map(|index| chunk.get(index))
}

/// The items of `chunk` after `edits`, both sorted.
fn merged<'a, C: Chunk>(chunk: &'a C, edits: &[Edit<'a, C>]) -> Vec<C::Item<'a>> {
    let mut items = Vec::with_capacity(chunk.len() + edits.len());
    let mut edits = edits.iter().peekable();
    for item in self::items(chunk) {
        let id = C::id(&item);
        while let Some((_, added)) = edits.next_if(|(edit, _)| *edit < id) {
            items.extend(added.clone());
        }
        match edits.next_if(|(edit, _)| *edit == id) {
            Some((_, replacement)) => items.extend(replacement.clone()),
            None => items.push(item),
        }
    }
    items.extend(edits.filter_map(|(_, added)| added.clone()));
    items
}

/// Cuts sorted items into chunks of equal size, none above [`MAX_CHUNK`].
fn push_chunks<C: Chunk>(chunks: &mut Vec<Arc<C>>, items: &[C::Item<'_>]) {
    let count = items.len().div_ceil(MAX_CHUNK);
    if count == 0 {
        return;
    }
    chunks.extend(items.chunks(items.len().div_ceil(count)).map(|items| Arc::new(C::build(items))));
}
