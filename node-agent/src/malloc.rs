//! Limits the memory that glibc's allocator keeps. Reading the kernel's BTF takes some 20 MB for a moment, most of
//! which it would not return; other allocators need no settings.

/// Size in bytes from which freed memory is returned to the system at once: glibc's own default, which it otherwise
/// raises to twice the largest freed block.
#[cfg(target_env = "gnu")]
const RETURNED_AT_ONCE: libc::c_int = 128 * 1024;

/// Makes the allocator return large blocks at once. Must be called before other threads are started.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) only requires that no other thread runs yet; a refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, RETURNED_AT_ONCE);
        libc::mallopt(libc::M_MMAP_THRESHOLD, RETURNED_AT_ONCE);
    }
}

/// Capacity, in entries, up to which a table is never shrunk: its memory is not worth the work.
const WORTH_SHRINKING: usize = 4096;

/// Returns whether a table that has so many places for so few entries should be made smaller.
#[must_use]
pub fn is_worth_shrinking(capacity: usize, used: usize) -> bool {
    capacity > WORTH_SHRINKING && used < capacity / 4
}

/// Returns free pages between used ones to the system.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time by any thread (malloc_trim(3)); it touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
