//! Caisson's own heap: for start-up, for making domains and for privileged calls, never for another exit.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

use caisson_locks::{Mutex, Rank};
use linked_list_allocator::Heap;

struct LockedHeap(Mutex<Heap>);

// SAFETY: the heap hands out disjoint blocks of its own memory, under a lock.
unsafe impl GlobalAlloc for LockedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if let Some(at) = NonNull::new(at) {
            // SAFETY: the caller gives back what `alloc` gave, with the same layout.
            unsafe { self.0.lock().deallocate(at, layout) };
        }
    }
}

#[cfg_attr(target_os = "none", global_allocator)]
static HEAP: LockedHeap = LockedHeap(Mutex::new(Rank::Heap, Heap::empty()));

/// Whether there is a heap yet: nothing may be allocated before.
pub fn is_there() -> bool {
    HEAP.0.lock().size() > 0
}

/// Bytes of it that are in use.
pub fn used() -> u64 {
    HEAP.0.lock().used() as u64
}

/// Bytes of it, in use or not.
pub fn bytes() -> u64 {
    HEAP.0.lock().size() as u64
}

/// Gives the heap its memory.
///
/// # Safety
/// Once, with memory that is nobody else's for ever.
pub(crate) unsafe fn init(at: *mut u8, bytes: usize) {
    // SAFETY: promised by the caller.
    unsafe { HEAP.0.lock().init(at, bytes) };
}
