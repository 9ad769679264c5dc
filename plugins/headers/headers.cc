// headers is a Proxy-Wasm plugin that removes, sets and adds headers of requests and
// responses. This file is the plugin; what it reads of a configuration is in rules.hpp.

#define PROXY_WASM_IMPLEMENTATION
#include "proxy_wasm.hpp"
#include "rules.hpp"

namespace {

using headers::Rules;
using headers::Values;

// One request with its response, by the rules that were in force when it began.
class Stream : public proxy_wasm::Stream {
 public:
  explicit Stream(std::shared_ptr<const Rules> rules) : rules_(std::move(rules)) {}

  // All values are read before anything is changed: a header can be renamed, and the
  // order of the rules does not matter. What responses need of the request is kept,
  // since its headers are gone by then.
  pw_action on_request_headers(size_t, bool) override {
    for (const std::string &name : rules_->kept) {
      if (auto value = proxy_wasm::request_headers.get(name)) request_[name] = *value;
    }
    rules_->request.apply(proxy_wasm::request_headers, [](const std::string &name) { return proxy_wasm::request_headers.get(name); });
    return PW_CONTINUE;
  }

  pw_action on_response_headers(size_t, bool) override {
    rules_->response.apply(proxy_wasm::response_headers, [this](const std::string &name) -> std::optional<std::string> {
      auto found = request_.find(name);
      if (found == request_.end()) return std::nullopt;
      return found->second;
    });
    return PW_CONTINUE;
  }

 private:
  std::shared_ptr<const Rules> rules_;
  Values request_;
};

class Plugin : public proxy_wasm::Root {
 public:
  bool on_configure(std::string_view text) override {
    auto rules = std::make_shared<Rules>();
    if (std::string wrong = rules->read(text); !wrong.empty()) {
      proxy_wasm::error("headers: configuration refused: ", wrong);
      return false;
    }
    rules_ = std::move(rules);
    return true;
  }

  std::unique_ptr<proxy_wasm::Stream> stream() override { return std::make_unique<Stream>(rules_); }

 private:
  std::shared_ptr<const Rules> rules_ = std::make_shared<Rules>();
};

}  // namespace

PROXY_WASM_ROOT(Plugin)
