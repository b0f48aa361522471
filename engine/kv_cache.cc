#include "engine/kv_cache.h"

#include <string>

namespace exact {

KvPages::KvPages(int32_t page_count, int32_t page_size, bool reuse, uint64_t hash_mask)
    : page_size_(page_size),
      reuse_(reuse),
      pool_(page_count),
      index_(page_count, page_size, hash_mask) {}

void KvPages::find(std::span<const int32_t> text, std::vector<int32_t>& pages) const {
  pages.clear();
  if (!reuse_) return;
  const auto block = static_cast<size_t>(page_size_);
  PrefixNode node = 0;
  for (size_t begin = 0; begin + block <= text.size(); begin += block) {
    const int32_t page = index_.find(node, text.subspan(begin, block));
    if (page < 0) return;
    pages.push_back(page);
    node = index_.node(page);
  }
}

void KvPages::adopt(std::span<const int32_t> found, PageList& list) {
  EXACT_CHECK(list.pages.empty(), "a sequence that has pages adopts others");
  for (const int32_t page : found) {
    if (pool_.holders(page) == 0) index_.set_held(page);
    pool_.share(page);
    list.pages.push_back(page);
  }
  list.published_pages = static_cast<int32_t>(found.size());
  list.published = found.empty() ? 0 : index_.node(found.back());
}

void KvPages::fork(const PageList& from, PageList& list) {
  EXACT_CHECK(list.pages.empty(), "a sequence that has pages is forked into");
  for (const int32_t page : from.pages) pool_.share(page);
  list.pages.assign(from.pages.begin(), from.pages.end());
  list.published_pages = from.published_pages;
  list.published = from.published;
}

int32_t KvPages::take() {
  if (pool_.free_count() == 0) {
    const int32_t page = index_.longest_idle();
    EXACT_CHECK(page >= 0, "a page of a cache that has none");
    index_.erase(page);
    pool_.give_back(page);
    evictions_++;
  }
  return pool_.take();
}

void KvPages::grow(PageList& list, int32_t positions) {
  const auto needed = static_cast<size_t>(pages_for(positions));
  while (list.pages.size() < needed) list.pages.push_back(take());
}

bool KvPages::is_shared(const PageList& list, int32_t position) const {
  return pool_.holders(list.pages[static_cast<size_t>(position / page_size_)]) > 1;
}

PageCopy KvPages::unshare(PageList& list, int32_t position) {
  int32_t& page = list.pages[static_cast<size_t>(position / page_size_)];
  EXACT_CHECK(pool_.holders(page) > 1, "a page that nobody else holds is copied");
  const PageCopy copy{page, take()};
  pool_.drop(page);
  page = copy.to;
  return copy;
}

void KvPages::release(PageList& list) {
  for (size_t i = list.pages.size(); i-- > 0;) {
    const int32_t page = list.pages[i];
    if (pool_.drop(page) > 0) continue;
    if (index_.node(page) != 0) {
      index_.set_idle(page);
    } else {
      pool_.give_back(page);
    }
  }
  list.pages.clear();
  list.published_pages = 0;
  list.published = 0;
}

void KvPages::publish(PageList& list, std::span<const int32_t> text, int32_t computed) {
  if (!reuse_) return;
  while ((list.published_pages + 1) * page_size_ <= computed) {
    const auto i = static_cast<size_t>(list.published_pages++);
    const auto block = static_cast<size_t>(page_size_);
    const auto ids = text.subspan(i * block, block);
    // Where another sequence was first with this text, its page stands for the text.
    const int32_t known = index_.find(list.published, ids);
    list.published =
        known >= 0 ? index_.node(known) : index_.insert(list.published, ids, list.pages[i]);
  }
}

void KvPages::forget_texts() {
  for (int32_t page = 0; page < page_count(); page++) {
    if (index_.node(page) == 0) continue;
    index_.erase(page);
    if (pool_.holders(page) == 0) pool_.give_back(page);
  }
}

Status KvPages::check_integrity(std::span<const PageList* const> lists) const {
  EXACT_RETURN_IF_ERROR(pool_.check_integrity());
  EXACT_RETURN_IF_ERROR(index_.check_integrity(pool_.all_holders()));
  std::vector<int32_t> counted(static_cast<size_t>(page_count()));
  for (const PageList* list : lists) {
    for (const int32_t page : list->pages) counted[static_cast<size_t>(page)]++;
  }
  for (int32_t page = 0; page < page_count(); page++) {
    const int32_t holders = std::max(pool_.holders(page), 0);
    if (counted[static_cast<size_t>(page)] == holders) continue;
    return Status(Code::corrupt, "page " + std::to_string(page) + " counts " +
                                     std::to_string(holders) + " holders and has " +
                                     std::to_string(counted[static_cast<size_t>(page)]));
  }
  return {};
}

}  // namespace exact
